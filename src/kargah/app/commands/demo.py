"""`kargah demo`: the main job from end to end, offline, with the server killed on the way; every number is measured."""

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.rule import Rule

from kargah.app.commands.console import EXIT_FAILED, fail, language, out, print_json, say
from kargah.app.demo import scenes, table
from kargah.app.demo.recipes import DISTILLATION, STUDENT, TEACHER
from kargah.app.demo.stage import MODEL_ID, DemoFailed, Stage
from kargah.client import ApiError, ServerUnreachable
from kargah.text.sizes import human_duration, human_size


def demo(
    folder: Annotated[Path, typer.Option(help="where the demo works; emptied first")] = Path("demo-home"),
    as_json: Annotated[bool, typer.Option("--json", help="the table as JSON at the end, for programs")] = False,
) -> None:
    """Download, train, distil, measure, classify: the main job on this machine, with the server killed on the way."""
    _empty(folder)
    stage = Stage(folder.absolute(), language())
    began = time.monotonic()
    try:
        rows = _play(stage)
    except (DemoFailed, ApiError, ServerUnreachable) as error:
        fail(f"{say('demo.failed')} {error}", EXIT_FAILED)
    finally:
        stage.close()
    out.print(
        say("demo.over", time=human_duration(time.monotonic() - began), path=str(stage.home)),
        markup=False,
        soft_wrap=True,
    )
    if as_json:
        print_json(rows)


def _play(stage: Stage) -> dict[str, dict[str, Any]]:
    _scene(1)
    hub = stage.start_hub()
    stage.start_server()
    out.print(say("demo.hub", url=hub, id=MODEL_ID), markup=False)
    last = scenes.download_with_a_kill(stage, out, say)
    sizes = {name: human_size(last[name]) or "" for name in ("totalBytes", "resumedBytes")}
    out.print(say("demo.downloaded", **sizes), markup=False)

    _scene(2)
    teacher = scenes.train(stage, out, say, name="demo-teacher", base=MODEL_ID, config=TEACHER, kill=True)
    num_steps = scenes.prove_nothing_lost(stage, teacher)
    out.print(say("demo.nothingLost", steps=num_steps), markup=False)

    _scene(3)
    alone = scenes.train(stage, out, say, name="demo-student", base=scenes.STUDENT_ID, config=STUDENT)
    distilled = scenes.train(
        stage,
        out,
        say,
        name="demo-student-distilled",
        base=scenes.STUDENT_ID,
        config={**STUDENT, **DISTILLATION},
        teacher=teacher["bestCheckpoint"],
    )

    _scene(4)
    folders = {
        "student": scenes.checkpoint_folder(stage, alone),
        "distilled": scenes.checkpoint_folder(stage, distilled),
        "teacher": scenes.checkpoint_folder(stage, teacher),
    }
    rows = table.measure(folders, *scenes.dataset_folder(stage))
    table.show(out, rows, say)

    _scene(5)
    for job in stage.client.get("/api/analysis/training/jobs"):
        figures = {name: f"{job[name]:.3f}" for name in ("trainLoss", "valLoss", "accuracy")}
        out.print(say("demo.job", name=job["name"], status=say(f"status.{job['status']}"), **figures), markup=False)
    for text, answer in table.classify(folders["teacher"]):
        out.print(
            say("demo.classified", text=text, label=answer["label"], score=f"{answer['score']:.2f}"), markup=False
        )
    return rows


def _scene(number: int) -> None:
    out.print(Rule(say(f"demo.scene{number}"), align="left" if language() == "en" else "right"))


def _empty(folder: Path) -> None:
    marker = folder / ".kargah-demo"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        fail(say("demo.notOurs", path=str(folder)), 2)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.touch()
