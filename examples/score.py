"""How likely is a given answer, under the mixture and under each role alone?"""

from eft_local import Emulator

QUESTION = "What is the capital of Peru?"

with Emulator.load("demo") as emulator:
    for continuation in ("The capital of Peru is Lima.", "The capital of Peru is Rome."):
        score = emulator.score(QUESTION, continuation)
        roles = ", ".join(f"{name} {logprobs.sum():.2f}" for name, logprobs in score.by_role.items())
        print(f"{continuation}  mixture {score.logprobs.sum():.2f} ({roles})")
