"""Schemathesis hooks: body formats and a check that openapi.yaml alone does not describe."""
import schemathesis


@schemathesis.serializer("text/csv", "application/x-ndjson")
def as_text(context, value):
    """Sends a string as it is, and any other value as a byte that is not UTF-8."""
    if isinstance(value, bytes): return value
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"\xff"


@schemathesis.check
def code_is_listed(context, response, case):
    """An error's code is listed by the operation for its status."""
    if response.headers.get("content-type", [""])[0] != "application/problem+json":
        return
    listed = case.operation.definition.raw["responses"].get(str(response.status_code), {}).get("x-codes", [])
    # Errors of other methods and paths do not come from the operation.
    code = response.json()["code"]
    assert code in [*listed, "bad_request", "method_not_allowed", "not_found"], f"{code} is not listed for {response.status_code}"
