"""What schemathesis cannot know by itself about openapi.yaml."""
import schemathesis


@schemathesis.serializer("text/csv", "application/x-ndjson")
def as_text(context, value):
    """These bodies are text already; what is no string can only be sent as bytes that are no text."""
    if isinstance(value, bytes): return value
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"\xff"


@schemathesis.check
def code_is_listed(context, response, case):
    """A refusal's code is among those that the operation lists for its status."""
    if response.headers.get("content-type", [""])[0] != "application/problem+json":
        return
    listed = case.operation.definition.raw["responses"].get(str(response.status_code), {}).get("x-codes", [])
    # Other methods and paths than the operation's own are refused before it.
    code = response.json()["code"]
    assert code in [*listed, "method_not_allowed", "not_found"], f"{code} is not listed for {response.status_code}"
