"""The chat template of Llama 3.2 Vision, for sources that have none of their own."""

from __future__ import annotations

__all__ = ["FAMILY_TEMPLATE"]

FAMILY_TEMPLATE = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- elif tools is not defined %}
    {%- set tools = none %}
{%- endif %}
{%- if tools_in_user_message is not defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}

{%- macro plain(content) -%}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- macro header(role) -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- endmacro %}
{%- macro functions() -%}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}
    {{- "Do not use variables.\\n\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + "\\n\\n" }}
    {%- endfor %}
{%- endmacro %}

{%- set system = namespace(given=false, text="") %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system.given = true %}
    {%- set system.text = plain(messages[0]['content']) | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set pictures = namespace(found=false) %}
{%- for message in messages if message['content'] and message['content'] is not string %}
    {%- for part in message['content'] if part['type'] == 'image' %}
        {%- set pictures.found = true %}
    {%- endfor %}
{%- endfor %}

{#- A system message where one was given, and in any chat without pictures. #}
{%- if system.given or not pictures.found %}
    {{- header('system') }}
    {%- if tools is not none %}
        {{- "Environment: ipython\\n" }}
    {%- endif %}
    {{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
    {%- if tools is not none and not tools_in_user_message %}
        {{- "You have access to the following functions. " }}
        {{- "To call a function, please respond with JSON for a function call." }}
        {{- functions() }}
    {%- endif %}
    {{- system.text + '<|eot_id|>' }}
{%- endif %}

{#- Tools stand before the text of the first message of the user. #}
{%- if tools is not none and tools_in_user_message %}
    {%- if not messages %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- header('user') }}
    {{- "Given the following functions, please respond with a JSON for a function call " }}
    {{- "with its proper arguments that best answers the given prompt.\\n\\n" }}
    {{- functions() }}
    {{- plain(messages[0]['content']) | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}

{%- for message in messages %}
    {%- if message['tool_calls'] is defined and message['tool_calls'] %}
        {%- if message['tool_calls'] | length != 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message['tool_calls'][0]['function'] %}
        {{- header('assistant') + '{"name": "' + call['name'] + '", "parameters": ' }}
        {{- call['arguments'] | tojson + '}' }}
    {%- elif message['role'] in ('tool', 'ipython') %}
        {{- header('ipython') + message['content'] | tojson }}
    {%- else %}
        {{- header(message['role']) + plain(message['content']) }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""
"""Renders what the Hub's corrected template renders (meta-llama/Llama-3.2-11B-Vision-Instruct, December 2024)."""
