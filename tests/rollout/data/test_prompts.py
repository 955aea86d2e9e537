"""Templates, BOS, length limits and unusable tokenizers."""

import pytest

from rollout.data.prompts import Prompter
from rollout.types import Problem
from tests.conftest import byte_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def text_of(prompter: Prompter, prompt: str | list[dict[str, str]]) -> str:
    encoded = prompter.encode(Problem(id="p", prompt=prompt))
    assert encoded is not None
    return prompter.tokenizer.decode(encoded.token_ids)


def with_bos_added():
    """The byte tokenizer with <bos> prepended, as Llama's and DeepSeek's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
    return tokenizer


def test_r1_zero_template_is_the_papers_text():
    prompter = Prompter(byte_tokenizer(), template="r1_zero", max_prompt_length=1000)
    assert text_of(prompter, "What is 2+3?") == (
        "A conversation between User and Assistant. The User asks a question and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
        "answer. The reasoning process and answer are enclosed within <think>...</think> and <answer>...</answer> "
        "tags, respectively, that is, <think> reasoning process here </think><answer> answer here </answer>. "
        "User: What is 2+3?. Assistant:"
    )


def test_template_string_keeps_every_other_brace():
    prompter = Prompter(byte_tokenizer(), template="Put it in \\boxed{}. {prompt} :", max_prompt_length=100)
    assert text_of(prompter, "\\frac{1}{2}+{x}") == "Put it in \\boxed{}. \\frac{1}{2}+{x} :"


def test_plain_prompt_becomes_these_tokens():
    prompter = Prompter(byte_tokenizer(), template="{prompt}<think>", max_prompt_length=10)
    problem = Problem(id="p", prompt="1+2", columns={"answer": "3"})
    encoded = prompter.encode(problem)
    tokenizer = byte_tokenizer()
    assert encoded is not None and encoded.problem is problem
    assert list(encoded.token_ids) == [*tokenizer.convert_tokens_to_ids(["1", "+", "2"]), 259]


def test_bos_appears_once_if_the_tokenizer_adds_it():
    plain = Prompter(with_bos_added(), template="{prompt}", max_prompt_length=10)
    written = Prompter(with_bos_added(), template="<bos>{prompt}", max_prompt_length=10)
    assert text_of(plain, "hi") == text_of(written, "hi") == "<bos>hi"


def test_no_bos_if_the_tokenizer_adds_none():
    assert text_of(Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=10), "hi") == "hi"


def test_chat_template_gets_no_second_bos():
    tokenizer = with_bos_added()
    tokenizer.chat_template = "<bos>" + CHAT
    prompter = Prompter(tokenizer, template="chat", max_prompt_length=100)
    assert text_of(prompter, "hi") == "<bos><user>hi<assistant>"


def test_chat_puts_the_system_prompt_first_unless_the_problem_has_one():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    prompter = Prompter(tokenizer, template="chat", system_prompt="Be brief.", max_prompt_length=100)
    user = {"role": "user", "content": "hi"}
    assert text_of(prompter, "hi") == "<system>Be brief.<user>hi<assistant>"
    assert text_of(prompter, [user]) == "<system>Be brief.<user>hi<assistant>"
    assert text_of(prompter, [{"role": "system", "content": "Rhyme."}, user]) == "<system>Rhyme.<user>hi<assistant>"


def test_chat_continues_a_prefilled_answer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    prompter = Prompter(tokenizer, template="chat", max_prompt_length=100)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>"}]
    assert text_of(prompter, messages) == "<user>hi<assistant><think>"


def test_prompt_at_the_limit_is_kept_and_a_longer_one_dropped():
    prompter = Prompter(byte_tokenizer(), template="{prompt}:", max_prompt_length=5)
    kept, dropped = prompter.encode_batch([Problem(id="a", prompt="1234"), Problem(id="b", prompt="12345")])
    assert kept is not None and len(kept.token_ids) == 5
    assert dropped is None


def test_errors_name_the_remedy():
    def prompter(tokenizer=None, template="{prompt}", **settings):
        return Prompter(tokenizer or byte_tokenizer(), template=template, max_prompt_length=10, **settings)

    with pytest.raises(ValueError, match=r"no chat template.*'r1_zero' or a string with {prompt}"):
        prompter(template="chat")
    with pytest.raises(ValueError, match=r"'r1-zero' is neither 'r1_zero' nor 'chat', and has no {prompt}"):
        prompter(template="r1-zero")
    with pytest.raises(ValueError, match=r"system_prompt only works with template 'chat'. Write it"):
        prompter(system_prompt="Be brief.")
    with pytest.raises(ValueError, match=r"row/3: the prompt is a list of messages, which only template 'chat'"):
        prompter().encode(Problem(id="row/3", prompt=[{"role": "user", "content": "hi"}]))
    with pytest.raises(ValueError, match=r"row/4: the prompt is empty"):
        prompter().encode(Problem(id="row/4", prompt=""))


def test_tokenizer_without_eos_is_rejected():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no EOS token.*tokenizer_config.json"):
        Prompter(tokenizer, template="{prompt}", max_prompt_length=10)


def test_tokenizer_without_pad_is_fine():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    prompter = Prompter(tokenizer, template="{prompt}", max_prompt_length=10)
    assert len(prompter.encode_batch([Problem(id="a", prompt="1"), Problem(id="b", prompt="123")])) == 2


def test_tokenizer_that_appends_eos_is_rejected():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 257)])
    with pytest.raises(ValueError, match=r"ends every text with EOS.*add_eos_token"):
        Prompter(tokenizer, template="{prompt}", max_prompt_length=10).encode(Problem(id="p", prompt="hi"))
