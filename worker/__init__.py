"""What makes a batch move: the doorbell, the stages of a batch's life, and the calls themselves."""
