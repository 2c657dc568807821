//! Parses a body of `/append`, JSON, a form or plain text, and checks every field.

use std::{borrow::Cow, time::Duration};

use percent_encoding::percent_decode;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use crate::http::{
    body::{media_type::MediaType, text::CELLS_MAX},
    error::ApiError,
};
use crate::{
    csv::{
        bom::BOM,
        schema::{Data, InvalidField, Schema},
    },
    simulation::Simulation,
};

/// A well-formed request. Whether its data fits the columns is checked by the schema.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AppendRequest<'a> {
    pub(crate) data: Data<'a>,
    pub(crate) simulation: Simulation,
}

const FIELDS: [&str; 3] = ["data", "sleep", "skip_release"];

impl<'a> AppendRequest<'a> {
    /// # Errors
    /// `BrokenBody`, or `InvalidField` with the name of the first wrong field; `sleep` may be at most `sleep_max`.
    pub(crate) fn parse(
        media_type: MediaType,
        body: &'a [u8],
        schema: &Schema,
        sleep_max: Duration,
    ) -> Result<Self, ApiError> {
        let body = body.strip_prefix(BOM).unwrap_or(body);
        let text = std::str::from_utf8(body).map_err(|_| ApiError::BrokenBody("the body is not UTF-8".to_owned()))?;
        match media_type {
            MediaType::Json => Self::from_json(text, schema, sleep_max),
            MediaType::Form => Self::from_form(text, sleep_max),
            MediaType::Text => Ok(Self { data: Data::Text(Cow::Borrowed(text)), simulation: Simulation::default() }),
        }
    }

    fn from_json(text: &'a str, schema: &Schema, sleep_max: Duration) -> Result<Self, ApiError> {
        const ACCEPTED: &str = "a JSON object with data, sleep, skip_release";
        // A field more than there are names is unknown or repeated, so the rest need not be kept.
        let fields = parse_json(FirstEntries(FIELDS.len() + 1), text, "body", ACCEPTED)?;
        let [data, sleep, skip_release] = pick(fields)?;
        let data = match data {
            Some(raw) => json_data(raw, schema)?,
            None => return Err(missing_data()),
        };
        let sleep = sleep.map(|raw| parse_sleep(raw.get(), sleep_max)).transpose()?.unwrap_or_default();
        let skip_release = match skip_release.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(InvalidField::new("skip_release", "accepted: true or false").into()),
        };
        Ok(Self { data, simulation: Simulation { sleep, skip_release } })
    }

    fn from_form(text: &'a str, sleep_max: Duration) -> Result<Self, ApiError> {
        if text.trim_start().starts_with(['{', '[']) {
            let hint = "this looks like JSON but came as a form: add the header Content-Type: application/json";
            return Err(InvalidField::new("data", hint).into());
        }
        let fields: Result<Vec<_>, ApiError> =
            text.split('&').filter(|pair| !pair.is_empty()).map(form_field).collect();
        let [data, sleep, skip_release] = pick(fields?)?;
        let data = Data::Text(data.ok_or_else(missing_data)?);
        let sleep = sleep.map(|text| parse_sleep(&text, sleep_max)).transpose()?.unwrap_or_default();
        let skip_release = match skip_release.as_deref() {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return Err(InvalidField::new("skip_release", "accepted: true, false, 1 or 0").into()),
        };
        Ok(Self { data, simulation: Simulation { sleep, skip_release } })
    }
}

/// The bodies that `parse` accepts, as JSON Schemas.
pub(crate) fn schemas() -> Value {
    let sleep = json!({
        "description": "Seconds to hold the lock before the row is written, 0 unless given; at most ROWLOCK_MAX_SLEEP (default 60 s).",
        "type": "number", "minimum": 0,
    });
    json!({
        "AppendRequest": {
            "type": "object", "additionalProperties": false, "required": ["data"],
            "properties": {
                "data": {"$ref": "#/components/schemas/Data"},
                "sleep": sleep,
                "skip_release": {
                    "description": "Do not release the lock after the write but let it expire, as after a crash of the replica; false unless given.",
                    "type": "boolean",
                },
            },
        },
        "AppendForm": {
            "type": "object", "additionalProperties": false, "required": ["data"],
            "properties": {
                "data": {"type": "string", "description": "The cell of the first data column. No NUL characters."},
                "sleep": sleep,
                "skip_release": {"type": "string", "enum": ["true", "false", "1", "0"], "description": "As in JSON."},
            },
        },
        "AppendText": {"type": "string", "description": "The cell of the first data column. No NUL characters."},
        "Data": {
            "description": "A string fills the first data column, an array fills the data columns from the left, an object fills them by name. Missing and null cells are empty; numbers keep their text. No NUL characters. With ROWLOCK_FORMULA_GUARD=on, a cell that a spreadsheet would run as a formula is written with an apostrophe in front.",
            "oneOf": [
                {"type": "string"},
                {"type": "array", "items": {"$ref": "#/components/schemas/Cell"}},
                {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Cell"}},
            ],
        },
        "Cell": {"type": ["string", "number", "boolean", "null"]},
    })
}

fn missing_data() -> ApiError {
    InvalidField::new("data", "missing: a string, an array or an object").into()
}

/// Sorts fields in the order of `FIELDS`. An unknown or repeated name is an error.
fn pick<T>(fields: Vec<(Cow<'_, str>, T)>) -> Result<[Option<T>; 3], ApiError> {
    let mut picked = [None, None, None];
    for (name, value) in fields {
        let Some(at) = FIELDS.iter().position(|known| *known == name) else {
            return Err(InvalidField::new(name, format!("unknown; accepted: {}", FIELDS.join(", "))).into());
        };
        if picked[at].replace(value).is_some() {
            return Err(InvalidField::new(name, "given twice").into());
        }
    }
    Ok(picked)
}

/// Only digits, signs, `.` and `e` reach Rust's parser, which also accepts `NaN` and `inf`.
fn parse_sleep(text: &str, max: Duration) -> Result<Duration, ApiError> {
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let secs = if numeric { text.parse::<f64>().ok() } else { None };
    let sleep = secs.filter(|secs| *secs >= 0.0).and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    let accepted =
        || InvalidField::new("sleep", format!("accepted: a number of seconds from 0 to {}", max.as_secs_f64()));
    Ok(sleep.filter(|sleep| *sleep <= max).ok_or_else(accepted)?)
}

/// A name or value of a form. Invalid UTF-8 is an error; the usual decoders replace it by U+FFFD.
fn form_text(raw: &str) -> Result<Cow<'_, str>, ApiError> {
    let broken = || ApiError::BrokenBody("the decoded form is not UTF-8".to_owned());
    if !raw.contains(['+', '%']) {
        return Ok(Cow::Borrowed(raw));
    }
    let spaced = raw.replace('+', " ");
    let decoded = percent_decode(spaced.as_bytes()).decode_utf8().map_err(|_| broken())?;
    Ok(Cow::Owned(decoded.into_owned()))
}

fn form_field(pair: &str) -> Result<(Cow<'_, str>, Cow<'_, str>), ApiError> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    Ok((form_text(name)?, form_text(value)?))
}

/// The first entries of a JSON object, at most so many, in order and with repetitions. The text of the values is kept.
struct FirstEntries(usize);

/// The first items of a JSON array, at most so many, and the number of all.
struct FirstItems(usize);

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for FirstEntries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FirstEntries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::with_capacity(self.0.min(FIELDS.len()));
        while entries.len() < self.0
            && let Some((Text(name), value)) = map.next_entry()?
        {
            entries.push((name, value));
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(entries)
    }
}

impl<'de> DeserializeSeed<'de> for FirstItems {
    type Value = (Vec<&'de RawValue>, usize);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for FirstItems {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < self.0
            && let Some(item) = seq.next_element()?
        {
            items.push(item);
        }
        let mut count = items.len();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((items, count))
    }
}

/// # Errors
/// `BrokenBody` if the text is not JSON, `InvalidField` if it is JSON of another shape.
pub(crate) fn parse_json<'a, S: DeserializeSeed<'a>>(
    seed: S,
    text: &'a str,
    field: &str,
    accepted: &str,
) -> Result<S::Value, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = seed.deserialize(&mut deserializer);
    let whole = parsed.and_then(|value| deserializer.end().map(|()| value));
    whole.map_err(|e| {
        if e.is_data() {
            InvalidField::new(field, format!("accepted: {accepted}")).into()
        } else {
            ApiError::BrokenBody(format!("not JSON: {e}"))
        }
    })
}

/// # Errors
/// `InvalidField`, if the value is not a string, an array of scalars or an object of scalars, or has more cells than a row may have.
pub(crate) fn json_data<'a>(raw: &'a RawValue, schema: &Schema) -> Result<Data<'a>, ApiError> {
    const ACCEPTED: &str = "a string, an array or an object";
    match raw.get().as_bytes()[0] {
        b'"' => Ok(Data::Text(json_string(raw.get())?)),
        b'[' => {
            let most = schema.data_columns().unwrap_or(CELLS_MAX);
            let (items, count) = parse_json(FirstItems(most), raw.get(), "data", ACCEPTED)?;
            schema.refuse_too_many(count)?;
            if count > most {
                return Err(InvalidField::new("data", format!("more than {most} cells")).into());
            }
            let cells = items.into_iter().enumerate().map(|(at, item)| json_cell(item, || format!("data[{at}]")));
            Ok(Data::List(cells.collect::<Result<_, _>>()?))
        }
        b'{' => {
            // An entry more than the file has columns is unknown or repeated, so the schema refuses the row without the rest.
            let most = schema.data_columns().unwrap_or_default() + 1;
            let entries = parse_json(FirstEntries(most), raw.get(), "data", ACCEPTED)?;
            let cells = entries.into_iter().map(|(name, value)| {
                let cell = json_cell(value, || format!("data.{name}"))?;
                Ok::<_, ApiError>((name, cell))
            });
            Ok(Data::Object(cells.collect::<Result<_, _>>()?))
        }
        _ => Err(InvalidField::new("data", format!("accepted: {ACCEPTED}")).into()),
    }
}

/// A scalar with its text: 1.10 stays 1.10.
fn json_cell(raw: &RawValue, field: impl Fn() -> String) -> Result<Option<Cow<'_, str>>, ApiError> {
    match raw.get().as_bytes()[0] {
        b'"' => json_string(raw.get()).map(Some),
        b'n' => Ok(None),
        b'[' | b'{' => {
            Err(InvalidField::new(field(), "nested; accepted: a string, a number, true, false or null").into())
        }
        _ => Ok(Some(Cow::Borrowed(raw.get()))),
    }
}

/// The outer parser has checked quotes and escapes, but not surrogate pairs.
fn json_string(text: &str) -> Result<Cow<'_, str>, ApiError> {
    let parsed: Result<Text<'_>, _> = serde_json::from_str(text);
    parsed.map(|Text(text)| text).map_err(|e| ApiError::BrokenBody(format!("not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(media_type: MediaType, body: &str) -> Result<AppendRequest<'_>, ApiError> {
        AppendRequest::parse(media_type, body.as_bytes(), &Schema::headerless(), Duration::from_secs(60))
    }

    #[test]
    fn json_numbers_keep_their_text_and_nulls_are_empty() {
        let request =
            parse(MediaType::Json, r#"{"data": [1.10, 12345678901234567890123, "é", true, null]}"#).expect("valid");
        let expected = [Some("1.10"), Some("12345678901234567890123"), Some("é"), Some("true"), None];
        assert_eq!(request.data, Data::List(expected.map(|cell| cell.map(Cow::Borrowed)).to_vec()));
    }

    #[test]
    fn form_is_decoded_and_invalid_utf8_is_refused() {
        let request = parse(MediaType::Form, "data=a+b%2C%C3%A9&sleep=0.5&skip_release=1").expect("valid");
        assert_eq!(request.data, Data::Text("a b,é".into()));
        assert_eq!(request.simulation, Simulation { sleep: Duration::from_millis(500), skip_release: true });
        assert!(matches!(parse(MediaType::Form, "data=%FF"), Err(ApiError::BrokenBody(_))));
    }
}
