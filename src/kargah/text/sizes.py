"""Sizes and durations for people. Sizes are decimal: 1 GB is 10⁹ bytes, as disks and networks are sold."""


def human_size(num_bytes: int | None) -> str | None:
    """`2100000000` → `"2.1 GB"`; None stays None."""
    if num_bytes is None:
        return None
    value = float(num_bytes)
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def human_duration(seconds: float) -> str:
    """`4310` → `"1:11:50"`, `65` → `"1:05"`."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
