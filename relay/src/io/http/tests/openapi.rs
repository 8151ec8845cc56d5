//! The description against the code: routes, parameters, statuses, answers.

use super::*;
use crate::io::http::openapi::{Answer, OPERATIONS, document};

/// What is wrong with `value`, which should be as `schema` says. Stricter than JSON Schema: what is not described is not to be
/// there.
fn wrong(value: &Value, schema: &Value, all: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        return wrong(value, &all[name], all).map(|why| format!("{name}: {why}"));
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        if let Some(choices) = schema[key].as_array() {
            let wrongs: Vec<_> = choices.iter().filter_map(|one| wrong(value, one, all)).collect();
            let fits =
                if key == "allOf" { wrongs.is_empty() } else { wrongs.len() < choices.len() };
            return (!fits).then(|| format!("{value} fits none: {wrongs:?}"));
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed = |one: &Value| one == kind || (one == "number" && kind == "integer");
    let fits = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(allowed),
        one => allowed(one),
    };
    if !fits {
        return Some(format!("{value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Some(format!("{value} is none of {}", schema["enum"]));
    }
    if let Some(items) = value.as_array() {
        return items.iter().find_map(|item| wrong(item, &schema["items"], all));
    }
    let fields = value.as_object()?;
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Some(format!("{name} is missing in {value}"));
        }
    }
    fields.iter().find_map(|(name, field)| {
        let described = match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Object(_)) => &schema["additionalProperties"],
            (Value::Null, _) => return Some(format!("{name} is not described")),
            (property, _) => property,
        };
        wrong(field, described, all).map(|why| format!("{name}: {why}"))
    })
}

/// The path of an operation, with names that the made-up world knows, and the parameters that it needs.
fn example(path: &str) -> String {
    let name = match path {
        // The registrar itself cannot be revoked.
        "/api/v1/relays/{name}/revoke" => "r2",
        path if path.contains("/relays/") => "r1",
        _ => "t0001",
    };
    let path = path.replace("{name}", name).replace("{id}", &session_id(1).to_string());
    if path.ends_with("/explain") { format!("{path}?from=a&to=b") } else { path }
}

#[test]
fn every_route_is_described_and_every_described_route_is_there() {
    let described: BTreeSet<_> =
        OPERATIONS.iter().map(|one| (one.path.to_owned(), one.method.to_owned())).collect();
    assert_eq!(described.len(), OPERATIONS.len(), "one stands twice");
    let source = include_str!("../api.rs");
    let routes: BTreeSet<_> = source
        .split(".route(")
        .skip(1)
        .map(|route| {
            let (path, rest) = route.trim_start().trim_start_matches('"').split_once('"').unwrap();
            let rest = rest.trim_start_matches([',', ' ', '\n']);
            (path.to_owned(), rest.split_once('(').unwrap().0.to_owned())
        })
        .collect();
    assert_eq!(routes, described);
}

#[tokio::test]
async fn answers_are_as_described() {
    let world = World { terminals: 3, sessions: 4, ..World::default() };
    let endpoint = Endpoint::start(world).await;
    let document: Value = endpoint.get("/api/v1/openapi.json").await.json();
    assert_eq!(document, super::super::openapi::document());
    let all = &document["components"]["schemas"];
    let token = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    for operation in OPERATIONS {
        let described = &document["paths"][operation.path][operation.method];
        let method = operation.method.to_uppercase();
        let path = example(operation.path);
        let success = &described["responses"]["200"]["content"];
        let (kind, content) = success.as_object().unwrap().iter().next().unwrap();
        if operation.answer != Answer::Events {
            let reply = endpoint.over_tcp(&method, &path, &token).await;
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            assert!(reply.head.contains(&format!("content-type: {kind}")), "{path}: {reply:?}");
            if kind == "application/json" && operation.answer != Answer::Description {
                let why = wrong(&reply.json(), &content["schema"], all);
                assert_eq!(why, None, "{path}");
            }
        }
        let problem = |reply: Reply| {
            let status = reply.status.to_string();
            let content = &described["responses"][&status]["content"];
            let schema = &content["application/problem+json"]["schema"];
            assert!(schema.is_object(), "{path}: {status} is not described");
            assert_eq!(wrong(&reply.json(), schema, all), None, "{path}");
            reply
        };
        // Another method.
        let other = if method == "GET" { "POST" } else { "GET" };
        endpoint.over_tcp(other, &path, &token).await.problem(405, "wrong-method");
        // A parameter too many: the refusal names those that are described.
        if described["responses"]["400"].is_object() {
            let join = if path.contains('?') { '&' } else { '?' };
            let reply = endpoint.over_tcp(&method, &format!("{path}{join}bogus=1"), &token).await;
            let detail = problem(reply).problem(400, "bad-request")["detail"].to_string();
            let names: Vec<_> = operation.query.iter().map(|(name, _)| *name).collect();
            let expected = match &names[..] {
                [] => "it takes none".to_owned(),
                names => format!("use {}\"", names.join(", ")),
            };
            assert!(detail.contains(&expected), "{path}: {detail}");
        }
        if method == "POST" {
            let without = endpoint.over_tcp(&method, &path, "Host: localhost\r\n").await;
            problem(without).problem(401, "unauthorized");
        }
        let stranger = endpoint.over_tcp("GET", &path, "Host: evil.example\r\n").await;
        if method == "GET" {
            problem(stranger).problem(421, "wrong-host");
        }
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_as_described() {
    let endpoint = Endpoint::start(World::default()).await;
    let document = document();
    let all = &document["components"]["schemas"];
    let token = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    for operation in OPERATIONS.iter().filter(|one| one.path.contains('{')) {
        let path = operation.path.replace("{name}", "NOBODY").replace("{id}", "x");
        let method = operation.method.to_uppercase();
        let reply = endpoint.over_tcp(&method, &path, &token).await;
        assert_eq!(reply.status, 404, "{path}");
        let described = &document["paths"][operation.path][operation.method]["responses"]["404"];
        let schema = &described["content"]["application/problem+json"]["schema"];
        assert_eq!(wrong(&reply.json(), schema, all), None, "{path}");
    }
    assert!(endpoint.world.commands().is_empty());
    endpoint.stop().await;
}

#[test]
fn the_check_of_answers_finds_what_is_wrong() {
    let all = json!({"Row": {"type": "object", "required": ["a"], "properties": {
        "a": {"type": "string", "enum": ["x"]}, "b": {"type": ["integer", "null"]},
    }}});
    let row = json!({"$ref": "#/components/schemas/Row"});
    for good in [json!({"a": "x"}), json!({"a": "x", "b": null}), json!({"a": "x", "b": 1})] {
        assert_eq!(wrong(&good, &row, &all), None);
    }
    for bad in [
        json!([]),
        json!({}),
        json!({"a": "y"}),
        json!({"a": 1}),
        json!({"a": "x", "b": 1.5}),
        json!({"a": "x", "c": 1}),
    ] {
        assert!(wrong(&bad, &row, &all).is_some(), "{bad}");
    }
}
