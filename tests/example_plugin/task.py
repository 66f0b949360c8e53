"""A task that trains a tokenizer as vidlatent does and reports a number of its own."""

from vidlatent.train.tasks.tokenizer import TokenizerTask


class ExampleTask(TokenizerTask):
    def train_step(self, state, batch, frozen):
        state, metrics = super().train_step(state, batch, frozen)
        return state, {**metrics, "example_task": 2.0 * metrics["loss"]}
