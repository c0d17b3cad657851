//! The document is one that strict tools take.

use std::collections::BTreeMap;

use super::*;

fn document() -> Value {
    crate::http::rest::document()
}

/// Every operation with its path.
fn operations(document: &Value) -> Vec<(String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let each = paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .iter()
            .map(move |(method, operation)| (format!("{method} {path}"), operation.clone()))
    });
    let found: Vec<(String, Value)> = each.collect();
    assert!(found.len() > 90, "{}", found.len());
    found
}

#[test]
fn every_operation_has_an_id_of_its_own_a_tag_and_who_may_call_it() {
    let document = document();
    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    let mut ids = BTreeMap::new();
    for (name, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap().to_owned();
        let tag = operation["tags"][0].as_str().unwrap();
        assert!(id.starts_with(&format!("{tag}_")), "{name}: {id}");
        if let Some(other) = ids.insert(id, name.clone()) {
            panic!("{name} has the id of {other}");
        }
        for way in operation["security"].as_array().unwrap() {
            assert!(
                way.as_object().unwrap().keys().all(|scheme| schemes.contains_key(scheme)),
                "{name}: {way}"
            );
        }
    }
}

#[test]
fn every_answer_has_a_schema() {
    for (name, operation) in operations(&document()) {
        for (status, answer) in operation["responses"].as_object().unwrap() {
            let content = answer.get("content").and_then(Value::as_object);
            let has_schema =
                content.is_some_and(|content| content.values().all(|one| one.get("schema").is_some()));
            assert!(has_schema, "{name}: {status}");
        }
        assert_eq!(
            operation.get("requestBody").is_some(),
            operation["responses"].get("413").is_some(),
            "{name}: what has a body can be too large"
        );
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let mut names = Vec::new();
    references(&document, &mut names);
    let missing: Vec<&String> =
        names.iter().filter(|name| document["components"]["schemas"].get(name).is_none()).collect();
    assert!(missing.is_empty() && names.len() > 100, "{missing:?}");
}

fn each<'a>(value: &'a Value, seen: &mut dyn FnMut(&'a Value)) {
    seen(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| each(item, seen)),
        Value::Object(fields) => fields.values().for_each(|field| each(field, seen)),
        _ => {}
    }
}

/// Exactly one schema of a `oneOf` may fit; a null must not fit two.
#[test]
fn nothing_is_anything_or_null() {
    let document = document();
    let mut choices = 0;
    each(&document, &mut |value| {
        let Some(choice) = value.get("oneOf").and_then(Value::as_array) else { return };
        choices += 1;
        let may_be_null = choice.iter().filter(|schema| takes_anything(schema) || schema["type"] == "null");
        assert!(may_be_null.count() <= 1, "{value}");
    });
    assert!(choices > 50, "{choices}");
    let mut before =
        json!({ "p": { "oneOf": [{ "type": "null" }, { "$ref": "#/components/schemas/Json" }] } });
    plain_nulls(&mut before);
    assert_eq!(before, json!({ "p": { "$ref": "#/components/schemas/Json" } }));
}

#[test]
fn requests_may_give_amounts_as_numbers_and_answers_do_not() {
    let document = document();
    let amount = |schema: &str, field: &str| {
        document["components"]["schemas"][schema]["properties"][field].to_string()
    };
    assert!(amount("NewTransfer", "amount").contains("AmountGiven"));
    assert!(amount("NegotiationRequest", "amount").contains("AmountGiven"));
    let shown = amount("Negotiation", "base_price");
    assert!(shown.contains("/Amount") && !shown.contains("AmountGiven"), "{shown}");
    // Types of requests are no types of answers, or the answers would seem to give numbers.
    for (name, operation) in operations(&document) {
        let mut pending = Vec::new();
        references(&operation["responses"], &mut pending);
        let mut reached = BTreeSet::new();
        while let Some(schema) = pending.pop() {
            if reached.insert(schema.clone()) {
                references(&document["components"]["schemas"][&schema], &mut pending);
            }
        }
        assert!(!reached.contains("AmountGiven"), "{name}");
    }
}
