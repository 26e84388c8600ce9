"""Ask one question; the answer comes back whole, with its figures."""

from eft_local import Emulator

with Emulator.load("demo") as emulator:
    answer = emulator.chat("What is the capital of Peru?", max_tokens=32, seed=1)

print(answer.text)
print(f"{len(answer.tokens)} tokens, ended by {answer.finish_reason!r}, exact: {answer.exact}")
