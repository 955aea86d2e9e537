"""Templates, BOS, length limits and unusable tokenizers."""

import json

import pytest

from rollout.data.columns import UnusableRowError
from rollout.data.prompts import Prompter
from rollout.types import Problem, Prompt
from tests.conftest import byte_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

WEATHER = {"type": "function", "function": {"name": "weather"}}


def text_of(prompter: Prompter, prompt: str | list[dict[str, str]]) -> str:
    encoded = prompter.encode(Problem(id="p", prompt=prompt))
    assert isinstance(encoded, Prompt)
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
    assert isinstance(encoded, Prompt) and encoded.problem is problem
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
    assert isinstance(kept, Prompt) and len(kept.token_ids) == 5
    assert isinstance(dropped, UnusableRowError) and dropped.reason == "too long"
    assert str(dropped) == "b: the prompt has 6 tokens, over max_prompt_length=5."


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
        prompter().render(Problem(id="row/3", prompt=[{"role": "user", "content": "hi"}]))
    with pytest.raises(ValueError, match=r"row/4: only template 'chat' shows the column `tools`"):
        prompter().render(Problem(id="row/4", prompt="hi", columns={"tools": [WEATHER]}))
    with pytest.raises(ValueError, match=r"chat_template_kwargs={'enable_thinking': False}: only template 'chat' uses"):
        prompter(chat_template_kwargs={"enable_thinking": False})


def chat(template: str, **settings) -> Prompter:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Prompter(tokenizer, template="chat", max_prompt_length=200, **settings)


def test_chat_template_kwargs_reach_the_template():
    template = CHAT + "{% if enable_thinking is false %}<off>{% endif %}"
    assert text_of(chat(template), "hi") == "<user>hi<assistant>"
    assert text_of(chat(template, chat_template_kwargs={"enable_thinking": False}), "hi") == "<user>hi<assistant><off>"


@pytest.mark.parametrize(
    ("name", "why"), [("enable_thinkin", "does not occur in"), ("tokenize", "is set by"), ("tools", "is set by")]
)
def test_chat_template_kwargs_without_effect_are_refused(name: str, why: str):
    with pytest.raises(ValueError, match=f"'{name}' {why}"):
        chat(CHAT + "{{ enable_thinking }}", chat_template_kwargs={name: False})


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}" + CHAT, "No system"),
        ("{{ messages[-1].content }}", "it drops the message"),
    ],
)
def test_system_prompt_for_a_template_without_the_role_is_refused(template: str, why: str):
    with pytest.raises(ValueError, match=rf"system_prompt='Be brief.': .* has no system role \({why}\)"):
        chat(template, system_prompt="Be brief.")


def test_tools_reach_the_template():
    prompter = chat("{% for tool in tools or [] %}[{{ tool.function.name }} {{ tool.note }}]{% endfor %}" + CHAT)
    for tools in ([WEATHER | {"note": None}], json.dumps([WEATHER])):
        encoded = prompter.encode(Problem(id="p", prompt="hi", columns={"tools": tools}))
        assert isinstance(encoded, Prompt)
        assert prompter.tokenizer.decode(encoded.token_ids) == "[weather ]<user>hi<assistant>"
    with pytest.raises(ValueError, match=r"p: column `tools` is set, but the tokenizer's chat template ignores tools"):
        chat(CHAT).render(Problem(id="p", prompt="hi", columns={"tools": [WEATHER]}))
    (unusable,) = chat(CHAT).encode_batch([Problem(id="p", prompt="hi", columns={"tools": "hammer"})])
    assert isinstance(unusable, UnusableRowError) and unusable.reason == "malformed"
    assert "p: column `tools` is 'hammer', not the JSON of a list of tools" in str(unusable)


def test_prompts_know_the_text_that_belongs_to_the_completion():
    def prefix(prompter: Prompter, prompt: str | list[dict[str, str]]) -> str:
        encoded = prompter.encode(Problem(id="p", prompt=prompt))
        assert isinstance(encoded, Prompt)
        return encoded.prefix

    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>\nFirst"}]
    assert prefix(chat(CHAT + "{{ '<think>\n' }}"), "hi") == "<think>\n"
    assert prefix(chat(CHAT), begun) == "<think>\nFirst"
    assert prefix(chat(CHAT), "hi <think>") == ""
    assert prefix(chat(CHAT + "<think>\n\n</think>\n"), "hi") == ""
    plain = {"tokenizer": byte_tokenizer(), "max_prompt_length": 1000}
    assert prefix(Prompter(template="{prompt}<think>", **plain), "hi") == "<think>"
    assert prefix(Prompter(template="r1_zero", **plain), "hi") == ""


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
