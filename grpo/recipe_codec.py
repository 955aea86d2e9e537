"""Makes a recipe a program: `accelerate launch recipe.yaml` runs `python recipe.yaml`.

A recipe starts with the comment `# -*- coding: grpo-recipe -*-`. To YAML it is a comment. To Python it names the codec
of the source (PEP 263), which a one-line .pth file, installed with this package, registers at start-up; this module is
imported when Python asks for the codec and not before.

Nothing of the file is read as Python: whatever it holds, it decodes to the one line below. The line does nothing in
processes that import their parent's main module, as those of multiprocessing do.
"""

import codecs

PROGRAM = '\nif __name__ == "__main__": from grpo.__main__ import main; main(["train", __file__, *__import__("sys").argv[1:]])\n'


def _decode(data: bytes, errors: str = "strict") -> tuple[str, int]:
    return PROGRAM, len(data)


class _Decoder(codecs.IncrementalDecoder):
    """Gives the program once, however many pieces the file comes in: Python reads until nothing more comes."""

    given = False

    def decode(self, input: bytes, final: bool = False) -> str:  # noqa: A002
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
