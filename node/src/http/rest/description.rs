//! What the OpenAPI document says of all endpoints together, beyond what stands at each handler: areas, who may call, and
//! what the types of Rust do not tell.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use utoipa::openapi::{OpenApi, PathItem};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

const SCHEMAS: &str = "#/components/schemas/";
/// An amount as answers have it.
const AMOUNT: &str = "#/components/schemas/Amount";
/// An amount as requests may have it.
const AMOUNT_GIVEN: &str = "#/components/schemas/AmountGiven";

/// The endpoints of an area, under its tag; ids of operations are those of the functions behind the area's name, so that
/// no two are the same.
pub fn area(name: &str, mut router: OpenApiRouter<Arc<App>>) -> OpenApiRouter<Arc<App>> {
    for item in router.get_openapi_mut().paths.paths.values_mut() {
        let PathItem { get, put, post, delete, patch, .. } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            operation.tags = Some(vec![name.to_owned()]);
            if let Some(id) = &mut operation.operation_id {
                *id = format!("{name}_{id}");
            }
        }
    }
    router
}

/// The whole document.
#[must_use]
pub fn complete(mut document: OpenApi) -> Value {
    document.info.title = "Muster".into();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    document.info.description = Some(
        "Users, agents, tasks, hirings, task streams and money. Every answer is an envelope of data, meta and errors; \
         agents authenticate with X-API-Key, users and sessions with Authorization: Bearer. A POST or PUT with \
         X-Idempotency-Key is done once in 24 hours; sent again it gets the same answer, with idempotency-replayed: true."
            .into(),
    );
    document.info.license = None;
    document.info.contact = None;
    let mut value = serde_json::to_value(document).unwrap_or_default();
    plain_nulls(&mut value);
    amounts_given(&mut value);
    if let Some(components) = value.get_mut("components").and_then(Value::as_object_mut) {
        components.insert("securitySchemes".into(), security_schemes());
    }
    let paths = value.get_mut("paths").and_then(Value::as_object_mut);
    for (path, item) in paths.into_iter().flatten() {
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            if let Some(operation) = operation.as_object_mut() {
                secure(path, operation);
                refuse_large_bodies(operation);
            }
        }
    }
    value
}

fn security_schemes() -> Value {
    json!({
        "api_key": {
            "type": "apiKey", "in": "header", "name": "X-API-Key",
            "description": "An agent's key (`ap_…`). A user's token and a session do here as well; `X-Agent-ID` names the \
                agent as which a user's token acts.",
        },
        "bearer": {
            "type": "http", "scheme": "bearer",
            "description": "A user's token (`ap_…`) or a session (`as_…`). An agent's key does here as well.",
        },
        "operator": {
            "type": "http", "scheme": "bearer",
            "description": "The operator's token (`MUSTER_ADMIN_TOKEN`); no other credential does.",
        },
    })
}

/// Says at every operation by which credentials it can be called. Those that take none say so at their handler.
fn secure(path: &str, operation: &mut Map<String, Value>) {
    let by = if path.starts_with("/api/v1/admin/") {
        json!([{ "operator": [] }])
    } else {
        json!([{ "api_key": [] }, { "bearer": [] }])
    };
    operation.entry("security").or_insert(by);
}

/// What has a body can have one that is too large.
fn refuse_large_bodies(operation: &mut Map<String, Value>) {
    if !operation.contains_key("requestBody") {
        return;
    }
    if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
        let envelope = json!({ "$ref": format!("{SCHEMAS}Envelope_Json") });
        responses.entry("413").or_insert(json!({
            "description": "The body is larger than `limits.http_body_bytes_max`.",
            "content": { "application/json": { "schema": envelope } },
        }));
    }
}

/// Whether a schema is one that every value fits.
fn takes_anything(schema: &Value) -> bool {
    let says = |name: &str| schema.get(name).is_some();
    match schema.get("$ref").and_then(Value::as_str) {
        Some(name) => name == "#/components/schemas/Json",
        None => !["type", "oneOf", "anyOf", "allOf", "enum", "const"].into_iter().any(says),
    }
}

/// "Anything, or null" is anything: `null` would fit both, and exactly one has to fit.
fn plain_nulls(value: &mut Value) {
    let null = json!({ "type": "null" });
    let fields = match value {
        Value::Array(items) => return items.iter_mut().for_each(plain_nulls),
        Value::Object(fields) => fields,
        _ => return,
    };
    let choices = fields.get("oneOf").and_then(Value::as_array);
    let others = choices.filter(|choices| choices.contains(&null));
    let anything =
        others.and_then(|choices| choices.iter().find(|choice| **choice != null && takes_anything(choice)));
    if let Some(Value::Object(anything)) = anything.cloned() {
        fields.remove("oneOf");
        fields.extend(anything);
    }
    fields.values_mut().for_each(plain_nulls);
}

/// Names of the schemas to which a part of the document refers.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(SCHEMAS));
            found.extend(name.map(str::to_owned));
            fields.values().for_each(|field| references(field, found));
        }
        _ => {}
    }
}

fn give_amounts(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(give_amounts),
        Value::Object(fields) => {
            if let Some(name) = fields.get_mut("$ref")
                && name == AMOUNT
            {
                *name = AMOUNT_GIVEN.into();
            }
            fields.values_mut().for_each(give_amounts);
        }
        _ => {}
    }
}

/// Answers have amounts as strings; requests may have numbers, too.
fn amounts_given(document: &mut Value) {
    let mut pending = Vec::new();
    let items = document.get("paths").and_then(Value::as_object).into_iter().flat_map(Map::values);
    for operation in items.filter_map(Value::as_object).flat_map(Map::values) {
        if let Some(body) = operation.get("requestBody") {
            references(body, &mut pending);
        }
    }
    let mut requested = BTreeSet::new();
    while let Some(name) = pending.pop() {
        let schema = document.pointer(&format!("/components/schemas/{name}"));
        if let (Some(schema), true) = (schema, requested.insert(name)) {
            references(schema, &mut pending);
        }
    }
    let schemas = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut);
    let Some(schemas) = schemas else { return };
    for name in requested {
        if let Some(schema) = schemas.get_mut(&name) {
            give_amounts(schema);
        }
    }
    schemas.insert(
        "AmountGiven".into(),
        json!({
            "description": "A decimal amount with at most six fraction digits, as a string or as a JSON number, without an exponent.",
            "type": ["string", "number"],
            "pattern": r"^[0-9]+(\.[0-9]{1,6})?$",
            "minimum": 0,
        }),
    );
}

#[cfg(test)]
mod tests;
