"""`[THINK]...[/THINK]`: Mistral's models that reason (Magistral)."""

from .format import ThoughtFormat

MISTRAL = ThoughtFormat(name="mistral", begin="[THINK]", end="[/THINK]", signs=("[THINK]",))
