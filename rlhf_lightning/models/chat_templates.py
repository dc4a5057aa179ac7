"""Chat templates that a config names: `dialogue` and `chatml`."""

from __future__ import annotations

TEMPLATES = {
    "dialogue": (
        "{% for message in messages %}{{ '\n\nHuman: ' if message['role'] == 'user' else '\n\nAssistant: ' }}"
        "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
