"""Settings that are written as text: ranges and lists."""

from pyratok_jax.errors import UserError


def parse_range(text: str, name: str) -> list[float]:
    """Numbers "first:step:last" (both ends included) or "a,b,c".

    Raises:
        UserError: written otherwise, or empty.
    """
    try:
        if ":" in text:
            first, step, last = (float(part) for part in text.split(":"))
            count = round((last - first) / step) + 1
            values = [round(first + i * step, 10) for i in range(count)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"--set {name}={text}: expected first:step:last or numbers with commas between"
        ) from error
    if not values:
        raise UserError(f"--set {name}={text}: the range is empty")
    return values


def parse_templates(text: str) -> list[str]:
    """Prompt templates, written with | between them; each holds {} once.

    Raises:
        UserError: one does not.
    """
    templates = [part.strip() for part in text.split("|")]
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise UserError(
                f"--set templates={text}: {template!r} must hold {{}} once, for the class name"
            )
    return templates
