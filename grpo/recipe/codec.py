"""Makes a recipe a program: `accelerate launch recipe.yaml` runs `python recipe.yaml`.

A recipe starts with the comment `# -*- coding: grpo-recipe -*-`. To YAML it is a comment. To Python it names the codec
of the source (PEP 263), which a one-line .pth file, installed with this package, registers at start-up; this module is
imported when Python asks for the codec and not before.

Nothing of the file is read as Python: whatever it holds, it decodes to the one line below. The line does nothing in
processes that import their parent's main module, as those of multiprocessing do.
"""

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

PROGRAM = '\nif __name__ == "__main__": import sys; from grpo.__main__ import main; main(["train", *sys.argv])\n'


def _decode(data: "Buffer", _errors: str = "strict", /) -> tuple[str, int]:
    return PROGRAM, len(memoryview(data))


class _Decoder(codecs.IncrementalDecoder):
    """Gives the program once, however many pieces the file comes in: Python reads until nothing more comes."""

    given = False

    def decode(self, _input: "Buffer", _final: bool = False, /) -> str:
        program = "" if self.given else PROGRAM
        self.given = True
        return program

    def reset(self) -> None:
        self.given = False


CODEC = codecs.CodecInfo(
    name="grpo-recipe",
    encode=codecs.utf_8_encode,
    decode=_decode,
    incrementaldecoder=_Decoder,
    incrementalencoder=codecs.getincrementalencoder("utf-8"),
)
