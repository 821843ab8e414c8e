"""What Overnight is measured against: loops that keep nothing, and other engines that execute batches.

A loop is a program that reads an input, makes the calls and writes an output; a crash loses
everything. An engine is asked by its batch API, as Overnight is. What does not come with this project
lives in an environment of its own, made when it is first needed.
"""
