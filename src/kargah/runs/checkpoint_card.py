"""The model card of a checkpoint (`README.md`): front matter as the model hub reads it, and the same for people.

It says what was measured, or frozen when the run began, and leaves out what is not known. The form of the front matter
is that of https://huggingface.co/docs/hub/model-cards (YAML between two lines of dashes).
"""

import json
import math
from typing import Any

from kargah.runs.checkpoint_lineage import Lineage
from kargah.text.languages import Language
from kargah.text.messages import FSI, PDI, translate

MAX_LABELS = 100

_METRIC_TYPES = {"accuracy": "accuracy", "macroF1": "f1", "valLoss": "loss"}
"""What the hub calls our metrics."""


def model_card(lineage: Lineage, language: Language) -> str:
    """The card in `language`, Markdown with YAML in front."""
    front = "\n".join(_front_matter(lineage))
    parts = [
        f"# {_line(lineage.row.name)}",
        _say("about", language, step=lineage.row.facts.get("step", 0), run=_line(_run_name(lineage))),
        *_section("origin", language, _origin(lineage, language)),
        *_section("measured", language, _measured(lineage)),
        *_section("config", language, _config(lineage)),
        *_section("versions", language, _versions(lineage)),
        f"## {_say('heading.usage', language)}",
        _usage(str(lineage.spec.get("task") or "text-classification")),
    ]
    return f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(lineage: Lineage) -> list[str]:
    root = lineage.root_model
    lines = ["library_name: transformers"]
    if lineage.spec.get("task"):
        lines.append(f"pipeline_tag: {_yaml(lineage.spec['task'])}")
    languages = (root.facts or {}).get("languages") if root is not None else None
    if languages:
        lines += ["language:", *(f"- {_yaml(name)}" for name in languages)]
    if root is not None and _is_of_a_hub(root.id):
        lines.append(f"base_model: {_yaml(root.id)}")
    datasets = _datasets(lineage)
    if named := [one["id"] for one in datasets if _is_of_a_hub(one["id"])]:
        lines += ["datasets:", *(f"- {_yaml(dataset_id)}" for dataset_id in named)]
    measured = [(name, value) for name, value in _metrics(lineage) if name in _METRIC_TYPES]
    if measured:
        lines += ["metrics:", *(f"- {_METRIC_TYPES[name]}" for name, _ in measured)]
    if measured and datasets and lineage.spec.get("task"):
        dataset_id = datasets[0]["id"]
        lines += [
            "model-index:",
            f"- name: {_yaml(lineage.row.name)}",
            "  results:",
            "  - task:",
            f"      type: {_yaml(lineage.spec['task'])}",
            "    dataset:",
            f"      type: {_yaml(dataset_id)}",
            f"      name: {_yaml(lineage.dataset_names.get(dataset_id, dataset_id))}",
            "      split: validation",
            "    metrics:",
        ]
        for name, value in measured:
            lines += [f"    - type: {_METRIC_TYPES[name]}", f"      name: {name}", f"      value: {value}"]
    return lines


def _origin(lineage: Lineage, language: Language) -> list[tuple[str, str]]:
    spec, manifest, row = lineage.spec, lineage.manifest, lineage.row
    base, teacher = spec.get("baseModel") or {}, spec.get("teacherModel") or {}
    labels = [str(label) for label in manifest.get("labels") or ()]
    shown = [*labels[:MAX_LABELS], *(["…"] if len(labels) > MAX_LABELS else [])]
    datasets = [
        f"{_code(one['id'])}"
        + (
            f" ({_line(lineage.dataset_names[one['id']])})"
            if lineage.dataset_names.get(one["id"], one["id"]) != one["id"]
            else ""
        )
        + (f", {_code(one['version'])}" if one.get("version") else "")
        for one in _datasets(lineage)
    ]
    facts: list[tuple[str, Any]] = [
        ("run", _code(row.run_id)),
        ("attempt", manifest.get("attempt", row.facts.get("attempt"))),
        ("step", manifest.get("step", row.facts.get("step"))),
        ("epoch", _number(manifest.get("epoch", row.facts.get("epoch")))),
        ("task", _code(spec.get("task"))),
        ("base", _model(base)),
        ("teacher", _model(teacher)),
        ("datasets", "; ".join(datasets)),
        ("labels", _say("separator", language).join(_line(label) for label in shown)),
    ]
    return [(_say(f"field.{name}", language), str(value)) for name, value in facts if value not in (None, "")]


def _measured(lineage: Lineage) -> list[tuple[str, str]]:
    return [(f"`{name}`", f"{value:.6g}") for name, value in _metrics(lineage)]


def _config(lineage: Lineage) -> list[tuple[str, str]]:
    config = lineage.spec.get("config") or {}
    return [(f"`{name}`", _code(_shown(value))) for name, value in config.items() if value is not None]


def _versions(lineage: Lineage) -> list[tuple[str, str]]:
    own = lineage.manifest.get("kargahVersion") or lineage.spec.get("kargahVersion")
    versions = {**({"kargah": own} if own else {}), **(lineage.manifest.get("versions") or {})}
    return [(f"`{name}`", _code(value)) for name, value in versions.items() if value]


def _usage(task: str) -> str:
    lines = (
        "from transformers import pipeline",
        f"model = pipeline({json.dumps(task)}, model='.')  # the folder this file is in",
        'print(model("…"))',
    )
    return "\n".join(["```python", *lines, "```"])


def _section(name: str, language: Language, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    table = [f"| {_say('heading.fact', language)} | {_say('heading.value', language)} |", "| --- | --- |"]
    return [
        f"## {_say(f'heading.{name}', language)}",
        "\n".join([*table, *(f"| {key} | {text} |" for key, text in rows)]),
    ]


def _say(key: str, language: Language, **params: Any) -> str:
    # In a file the marks that isolate a Latin word would be letters that nobody sees.
    return translate(f"card.{key}", language, **params).replace(FSI, "").replace(PDI, "")


def _datasets(lineage: Lineage) -> list[dict[str, Any]]:
    return [one for one in lineage.spec.get("datasets") or () if isinstance(one, dict) and one.get("id")]


def _metrics(lineage: Lineage) -> list[tuple[str, float]]:
    measured = lineage.manifest.get("metrics") or {}
    return [
        (name, float(value))
        for name, value in measured.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _run_name(lineage: Lineage) -> str:
    return lineage.run.name if lineage.run is not None else str(lineage.spec.get("name") or lineage.row.run_id)


def _model(reference: dict[str, Any]) -> str:
    if not reference.get("id"):
        return ""
    return _code(reference["id"]) + (f", {_code(reference['revision'])}" if reference.get("revision") else "")


def _is_of_a_hub(asset_id: str) -> bool:
    # Our own ids have no slash; the hub refuses a card that names what cannot be one of its own.
    return asset_id.count("/") == 1


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> str | None:
    return f"{value:.6g}" if isinstance(value, int | float) else None


def _code(value: Any) -> str:
    return f"`{_line(str(value)).replace('`', chr(39))}`" if value else ""


def _line(text: str) -> str:
    """A name inside a line of Markdown: no line of its own, no cell, no tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _yaml(value: Any) -> str:
    # A string of JSON is one of YAML 1.2 as well.
    return json.dumps(str(value), ensure_ascii=False)
