"""A signal ends transformers' Trainer after its step, with a checkpoint."""

from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState

from grpo.launch import signals


class StopsForSignals(TrainerCallback):
    """To be added before callbacks that look at `should_save`. Every process calls it, so all stop at one step."""

    def __init__(self) -> None:
        self._number = self._step = 0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """From here on, there is something to save."""
        signals.defer()

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_kwargs: Any) -> None:
        """The last step needs no stop: the result is written next."""
        if state.global_step < state.max_steps and (number := max(gather_object([signals.received()]))):
            self._number, self._step = number, state.global_step
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # it would come before the checkpoint

    def check(self) -> None:
        """Call after `train`.

        Raises:
            grpo.launch.signals.Stopped: a signal has ended it.
        """
        if self._number:
            raise signals.Stopped(self._number, self._step)
