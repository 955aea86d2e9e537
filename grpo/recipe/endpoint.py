"""The section that describes a model behind an OpenAI-compatible endpoint."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from grpo.recipe.section import Section


class Endpoint(Section):
    """A model behind an OpenAI-compatible endpoint, such as vLLM's server, and how it is asked."""

    model: str
    base_url: str | None = None  # such as http://host:8000/v1; None: OpenAI's
    max_tokens: PositiveInt = 1024  # of an answer
    temperature: NonNegativeFloat = 0.0
    max_concurrency: PositiveInt = 8  # requests at once
    max_retries: NonNegativeInt = 6  # of a request, with growing pauses
    timeout: PositiveFloat = 120.0  # seconds a request may wait for data
    api_key_env: str = "OPENAI_API_KEY"  # environment variable with the key; your own server often needs none
