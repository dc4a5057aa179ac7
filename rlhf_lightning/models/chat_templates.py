"""Chat templates that a config names, `dialogue` and `chatml`; each renders a role and a key of a message, or refuses it."""

from __future__ import annotations

DIALOGUE = """\
{% if tools %}{{ raise_exception('the template dialogue cannot render tools') }}{% endif %}\
{% for message in messages %}\
{% if message['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('the template dialogue has no role ' ~ message['role']) }}{% endif %}\
{% if message['content'] is not string or message.tool_calls or message.reasoning_content %}\
{{ raise_exception('the template dialogue renders messages with text alone') }}{% endif %}\
{% if message['role'] == 'system' %}{% if not loop.first %}\
{{ raise_exception('the template dialogue has the system message first') }}{% endif %}{{ message['content'] }}\
{% elif message['role'] == 'user' %}{{ '\\n\\nHuman: ' ~ message['content'] }}\
{% else %}{{ '\\n\\nAssistant: ' ~ message['content'] ~ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"""

CHATML = """\
{% if tools %}{{ '<|im_start|>system\\n# Tools\\n<tools>' }}\
{% for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}{% endif %}\
{% for message in messages %}\
{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}\
{{ raise_exception('the template chatml has no role ' ~ message['role']) }}{% endif %}\
{{ '<|im_start|>' ~ message['role'] ~ '\\n' }}\
{% if message.reasoning_content %}{{ '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n' }}{% endif %}\
{{ message['content'] or '' }}\
{% for call in message.tool_calls or [] %}\
{{ '<tool_call>\\n' ~ ((call.function or call) | tojson) ~ '\\n</tool_call>' }}{% endfor %}\
{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEMPLATES = {"dialogue": DIALOGUE, "chatml": CHATML}
