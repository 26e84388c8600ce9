"""Follow an answer token by token: how did each role rank it, and how far did the experts move the base?"""

from eft_local import Emulator

with Emulator.load("demo") as emulator:
    print(f"{'token':14}{'base rank':>10}{'expert rank':>12}{'mixture':>9}{'change':>8}")
    for step in emulator.stream_chat("What is the capital of Peru?", max_tokens=32, seed=1, statistics=True):
        if not step.roles:
            continue
        base, mixture = step.roles["base"], step.roles["eft"]
        expert = next(view for name, view in step.roles.items() if name not in ("base", "antiexpert", "eft"))
        print(f"{step.text!r:14}{base.rank:10}{expert.rank:12}{mixture.logprob:9.2f}{step.change:8.2f}")
