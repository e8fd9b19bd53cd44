"""`<think>...</think>`: DeepSeek-R1, QwQ, Qwen3, and most models after them."""

from .format import ThoughtFormat

THINK = ThoughtFormat(name="think", begin="<think>", end="</think>", signs=("<think>", "</think>"))
