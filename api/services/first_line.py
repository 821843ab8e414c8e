"""The light check that an upload of purpose batch gets: does it begin like JSON Lines?

Promises: only the first line that is not blank is looked at, and only while it is short enough to be
kept in memory; everything else is left to validation, which names the lines.
"""

from models.lines import is_json_object

MAX_KEPT_BYTES = 32 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class FirstLine:
    """Watches a stream of bytes until its first line is judged.

    `is_json_object` is `None` while that is open.
    """

    def __init__(self) -> None:
        self.is_json_object: bool | None = None
        self._kept = bytearray()
        self._at_start = True

    def feed(self, data: bytes) -> None:
        """Take more bytes."""
        if self.is_json_object is not None:
            return
        searched = len(self._kept)
        self._kept += data
        if self._at_start and len(self._kept) >= len(_BOM):
            self._at_start = False
            if self._kept.startswith(_BOM):
                del self._kept[: len(_BOM)]
                searched = 0
        if not self._at_start:
            self._judge_lines(searched)

    def end(self) -> None:
        """No more bytes will come: judge what there is."""
        if self.is_json_object is None:
            self.is_json_object = is_json_object(bytes(self._kept))
        self._kept.clear()

    def _judge_lines(self, searched: int) -> None:
        while (end := self._kept.find(b"\n", searched)) >= 0:
            line = bytes(self._kept[:end]).strip()
            if line:
                self.is_json_object = is_json_object(line)
                self._kept.clear()
                return
            del self._kept[: end + 1]
            searched = 0
        begins = self._kept[:1024].lstrip()
        if begins and not begins.startswith(b"{"):
            self.is_json_object = False
        elif len(self._kept) > MAX_KEPT_BYTES:
            self.is_json_object = True
        if self.is_json_object is not None:
            self._kept.clear()
