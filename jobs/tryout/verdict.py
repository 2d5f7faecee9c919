"""What a user should know about a run of `try`: when it cannot be good, and whether it is."""

from typing import Any

from jobs.tryout.choices import Choice, Facts

FEW_IMAGES, FEW_SCORED, FEW_STEPS = 30, 10, 300
NOTHING, USABLE = 10, 40  # scores in percent


def warnings_of(facts: Facts, choices: list[Choice]) -> list[str]:
    """Return why the network cannot become good, before it is trained."""
    settings = {key: value for choice in choices for key, value in choice.settings.items()}
    lines = []
    if facts.train < FEW_IMAGES:
        lines.append(
            f"{facts.train} training images are few; expect a network that works on images like "
            "these only, and label more, or start from pretrained weights with --weights"
        )
    if facts.val < FEW_SCORED:
        lines.append(f"{facts.val} validation images are few, so the scores are rough")
    if (steps := settings["trainer.steps"]) < FEW_STEPS:
        lines.append(f"{steps} steps are few; give more time with --minutes, or use a GPU")
    return lines


def verdict(scores: dict[str, Any], facts: Facts) -> str:
    """Return a sentence that says whether the network is good.

    With panoptic truth, things alone decide if there are any: a network that finds nothing except
    a large background has a high PQ.
    """
    names = {"panoptic": ("PQ_th", "PQ"), "instance": ("AP50",), "semantic": ("mIoU",)}
    task = next(task for task in names if task in facts.tasks)
    name = next((name for name in names[task] if scores.get(name) is not None), names[task][0])
    value = scores.get(name) or 0.0
    if value < NOTHING:
        how = (
            "barely more than nothing: look at the report, label more images, train longer with "
            "--minutes, or start from pretrained weights with --weights"
        )
    elif value < USABLE:
        how = "a start: the network finds some of it, and longer training should help (--minutes)"
    else:
        how = "good for a short run: look at the pictures of the report for what it misses"
    few = f", of {facts.val} images only" if facts.val < FEW_SCORED else ""
    return f"{name} {value:.1f}{few}: {how}"
