"""Requests and answers against the part of RunPod's specification in runpod_schema.json."""

import functools
import json
import pathlib
import re
import urllib.parse

import jsonschema

SPECIFICATION = json.loads(pathlib.Path(__file__).with_name("runpod_schema.json").read_text())
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


class Problem(Exception):
    """An answer that is an error, RFC 9457."""

    def __init__(self, status, detail, errors=None, **headers):
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.headers = headers
        self.body = {"title": TITLES[status], "status": status, "detail": detail} | (
            {"errors": errors} if errors else {}
        )


@functools.cache
def _validator(text):
    return jsonschema.Draft202012Validator({"$defs": SPECIFICATION["$defs"]} | json.loads(text))


def violations(value, schema):
    """What is wrong with the value, [] if nothing is."""
    errors = _validator(json.dumps(schema)).iter_errors(value)
    return [f"/{'/'.join(map(str, error.absolute_path))}: {error.message}"[:300] for error in errors]


def find(method, path):
    """(template, {name: value} of its parts, operation) of a request."""
    for template, operations in SPECIFICATION["paths"].items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template), path)
        if match:
            operation = operations.get(method.lower())
            if operation is None:
                raise Problem(405, f"{method} is not allowed here", Allow=", ".join(operations).upper())
            parts = {name: urllib.parse.unquote(value) for name, value in match.groupdict().items()}
            return template, parts, operation
    raise Problem(404, "route not found")


def _typed(text, schema):
    """A query's text as the type that the schema names; the text where it isn't one."""
    if "$ref" in schema:
        return _typed(text, SPECIFICATION["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    if schema["type"] == "array":
        return text.split(",")
    if schema["type"] == "integer" and re.fullmatch(r"-?\d+", text):
        return int(text)
    if schema["type"] == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def query(operation, text):
    """{name: value} of a query string."""
    known = {entry["name"]: entry["schema"] for entry in operation.get("parameters", []) if entry["in"] == "query"}
    found, errors = {}, []
    for name, value in urllib.parse.parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)):
        if name not in known:
            errors.append(f"query/{name}: unknown parameter")
        elif name in found:
            errors.append(f"query/{name}: given twice")
        else:
            found[name] = _typed(value, known[name])
            errors += [f"query/{name}{error}" for error in violations(found[name], known[name])]
    if errors:
        raise Problem(422, "Request validation failed.", errors)
    return found


def body(operation, content_type, data):
    """The request's JSON, None where none belongs."""
    if "body" not in operation:
        if data:
            raise Problem(400, "this request has no body")
        return None
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise Problem(400, f"content type {content_type or 'missing'}: application/json is expected")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Problem(400, f"malformed JSON: {error}") from None
    errors = violations(value, operation["body"])
    if errors:
        raise Problem(422, "Request validation failed.", errors)
    return value


def check_answer(operation, status, value):
    """Our own answers keep to the specification: no unknown fields either, which it doesn't forbid."""
    if status >= 400:
        schema = {"$ref": "#/$defs/ErrorResponse"}
    else:
        answer = operation["answers"].get(str(status))
        assert answer is not None, f"{operation['operationId']} never answers with {status}"
        if not answer:
            assert value is None, f"{operation['operationId']}: {status} has no body"
            return
        schema = answer["schema"]
    wrong = violations(value, {"allOf": [schema], "unevaluatedProperties": False})
    assert not wrong, f"the emulator's answer to {operation['operationId']}: {wrong}\n{json.dumps(value)}"
