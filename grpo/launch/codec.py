"""Makes recipes executable: `accelerate launch recipe.yaml` runs `python recipe.yaml`.

A recipe starts with `# -*- coding: grpo-recipe -*-`: a comment to YAML, the source encoding to Python (PEP 263). A
one-line .pth file, installed with this package, registers the codec at start-up; this module is imported only when
Python looks the codec up.

None of the file is run as Python: whatever its content, it decodes to the line below. The `__main__` guard keeps
multiprocessing children, which import their parent's main module, from training again.
"""

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

PROGRAM = '\nif __name__ == "__main__": import sys; from grpo.__main__ import main; main(["train", *sys.argv])\n'


def _decode(data: "Buffer", _errors: str = "strict", /) -> tuple[str, int]:
    return PROGRAM, len(memoryview(data))


class _Decoder(codecs.IncrementalDecoder):
    """Returns the program once, however often it is called: Python reads until the decoder returns nothing."""

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
