"""The reward model: a tiny sequence classifier, called directly, in a worker, and compared with TRL."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from rewards import reward_model
from rewards.models.reward_model import _device
from rewards.runner.score import Rewards, RewardSpec
from rollout.types import Problem
from tests.conftest import byte_tokenizer, sharpen, tiny_llama_config
from tests.rewards.runner.test_score import group, score_all

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PROMPTS = ["Which city?"] * 3
TEXTS = ["Paris", "<think>London or Paris, that is the question</think> Paris", ""]


@pytest.fixture(scope="module")
def tiny_reward_model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward_model")
    config = tiny_llama_config()
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    sharpen(model, seed=1)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return str(folder)


def alone(folder: str, text: str) -> float:
    """The logit of a single text, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        return model(ids).logits[0, 0].item()


@pytest.mark.parametrize(
    ("local_rank", "num_gpus", "device"),
    [("0", 0, "cpu"), ("3", 0, "cpu"), (None, 8, "cuda:0"), ("0", 8, "cuda:0"), ("3", 8, "cuda:3"), ("3", 1, "cuda:0")],
)
def test_each_rank_scores_on_its_own_gpu(monkeypatch, local_rank, num_gpus, device):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert _device(num_gpus) == device


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_reward_is_the_logit_of_prompt_and_completion(tiny_reward_model, batch_size):
    got = reward_model(PROMPTS, TEXTS, model_name_or_path=tiny_reward_model, batch_size=batch_size)
    assert got == pytest.approx([alone(tiny_reward_model, "Which city?" + text) for text in TEXTS], abs=1e-5)
    assert max(got) - min(got) > 0.1


@pytest.mark.parametrize("name", ["runs/no/such/model", "/no/such/folder"])
def test_a_model_that_is_not_there_is_named_before_training(name):
    rewards = Rewards([RewardSpec(function="reward_model", options={"model_name_or_path": name})], num_workers=0)
    with pytest.raises(ValueError, match=rf"reward 'reward_model': model_name_or_path='{name}': no such folder or Hub"):
        rewards.check(Problem(id="p/0", prompt="q", columns={}))


def test_messages_use_the_models_chat_template(tiny_reward_model):
    prompts = [[{"role": "user", "content": "Which city?"}]] * 3
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    got = reward_model(prompts, completions, model_name_or_path=tiny_reward_model)
    expected = [alone(tiny_reward_model, f"[user]Which city?[assistant]{text}") for text in TEXTS]
    assert got == pytest.approx(expected, abs=1e-5)


def test_summary_only_hides_the_thinking(tiny_reward_model):
    options = {"model_name_or_path": tiny_reward_model, "summary_only": True}
    got = reward_model(["q"] * 3, [TEXTS[1], "Paris", "<think>Paris"], **options)
    paris, nothing = alone(tiny_reward_model, "qParis"), alone(tiny_reward_model, "q")
    assert got == pytest.approx([paris, paris, nothing], abs=1e-5)


def test_long_texts_are_truncated(tiny_reward_model):
    got = reward_model(["q"] * 2, ["x" * 5000, "xyz"], model_name_or_path=tiny_reward_model, max_length=3)
    assert got == pytest.approx([alone(tiny_reward_model, "qxx"), alone(tiny_reward_model, "qxy")], abs=1e-5)
    assert len(reward_model(["q"], ["x" * 5000], model_name_or_path=tiny_reward_model)) == 1  # the tokenizer's limit


def test_the_reward_model_runs_in_a_worker(tiny_reward_model):
    spec = {"function": "reward_model", "options": {"model_name_or_path": tiny_reward_model}}
    (scored,) = score_all([spec], [group(TEXTS, prompt="Which city?")], 1)
    assert scored.rewards == pytest.approx([alone(tiny_reward_model, "Which city?" + text) for text in TEXTS], abs=1e-5)


def test_a_classifier_with_several_labels_is_rejected(tmp_path):
    LlamaForSequenceClassification(tiny_llama_config()).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 labels, but a reward model has one output"):
        reward_model(["q"], ["a"], model_name_or_path=str(tmp_path))


def test_values_match_trls_trainer(tiny_reward_model, tiny_llama, tmp_path):
    pytest.importorskip("trl")
    from tests.grpo.learner.objectives.test_trl_parity import trl_trainer

    trainer, _ = trl_trainer(tiny_llama, tmp_path, reward_funcs=[tiny_reward_model])
    trainer.train()
    logged = trainer._logs
    prompts, completions = list(logged["prompt"]), list(logged["completion"])
    (theirs,) = logged["rewards"].values()
    ours = reward_model(prompts, completions, model_name_or_path=tiny_reward_model)
    assert len(ours) == 24 and ours == pytest.approx(list(theirs), abs=1e-5)
