"""Answer several questions side by side: one batch per role and token, and each answer as it would be alone."""

from eft_local import Emulator

QUESTIONS = [
    "What is the capital of Peru?",
    "What is the currency of Japan?",
    "What is the symbol of iron?",
]

with Emulator.load("demo") as emulator:
    answers = emulator.chat(QUESTIONS, max_tokens=32, seed=1)

for question, answer in zip(QUESTIONS, answers, strict=True):
    print(f"{question}  {answer.text}")
