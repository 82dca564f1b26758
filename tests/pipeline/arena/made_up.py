"""Records of trainings that nobody ran."""

from pipeline.arena.record import Record, Rounded


def recorded(training, score):
    """Return a record of a training with a validation score, or one each of validation and test; None: it diverged."""
    validation, test = score if isinstance(score, tuple) else (score, score)
    finished = validation is not None
    return Record(
        **{name: getattr(training, name) for name in ("key", "preset", "task", "method", "rate", "head_rate", "seed")},
        status="finished" if finished else "diverged",
        reason="" if finished else "the loss is nan",
        metrics=("accuracy",),
        validation=(validation,) if finished else (),
        test=({"accuracy": test},) if finished else (),
        predicted=(0.0, 1.0) if finished else (),
        rounded={"2bit": Rounded(bytes=200, validation=0.5, test={"accuracy": 0.5})} if training.is_rounded else {},
        trained=10,
        stored=10,
        file_bytes=400,
        seconds={"load": 0.1, "start": 0.2, "train": 3.0, "score": 1.0},
        peak_bytes=1_000_000,
        made={"commit": "none"},
    )
