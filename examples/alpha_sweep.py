"""The same question with less and with more of what tuning changed: alpha from 0 (the base alone) to 1.5."""

from eft_local import Emulator, Sampling

with Emulator.load("demo") as emulator:
    for alpha in (0.0, 0.5, 1.0, 1.5):
        answer = emulator.chat(
            "What is the capital of Peru?", alpha=alpha, sampling=Sampling(temperature=0, max_tokens=16)
        )
        print(f"alpha {alpha:3.1f}: {answer.text.strip()!r}")
