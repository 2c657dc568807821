//! Real tables, many clients, several replicas: each line exactly once, tokens never going back.

use std::{collections::HashMap, fs, sync::Arc};

use serde_json::json;

use crate::support::{Bench, On, Replica};

const CLIENTS: usize = 32;

/// Every line of the system's own multilingual tables, and a text that is hard to quote.
fn lines() -> Vec<String> {
    let mut lines: Vec<String> = ["zone1970.tab", "iso3166.tab"]
        .into_iter()
        .flat_map(|name| {
            let table = fs::read_to_string(format!("/usr/share/zoneinfo/{name}"))
                .expect("tzdata is installed: make test does it");
            table.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let hard = [
        "say \"hi\", they said",
        "two\nlines",
        "two\r\nlines",
        "\"",
        ",",
        "\"\",\n\"",
        "",
        " ",
        "Ærøskøbing, 東京, Ωδή, 🦀",
        "a\rb",
        "'",
    ];
    lines.extend(hard.map(str::to_owned));
    lines
}

/// Three replicas write the lines of many clients.
pub(crate) async fn every_line_stands_exactly_once(bench: Bench, settings: &[(&str, &str)]) {
    let replicas: Arc<Vec<Replica>> = Arc::new((0..3).map(|_| bench.replica(settings)).collect());
    let lines = Arc::new(lines());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (replicas, lines) = (Arc::clone(&replicas), Arc::clone(&lines));
            tokio::spawn(async move {
                let mut offsets = Vec::new();
                for (at, line) in lines.iter().enumerate().skip(client).step_by(CLIENTS) {
                    let ack = replicas[at % replicas.len()].append_text(line).await;
                    offsets.push((
                        ack["offset"].as_u64().expect("a number"),
                        ack["bytes"].as_u64().expect("a number"),
                        line.clone(),
                    ));
                }
                offsets
            })
        })
        .collect();
    let mut places = Vec::new();
    for client in clients {
        places.extend(client.await.expect("no client panics"));
    }

    let rows = bench.rows();
    let count = |texts: &mut dyn Iterator<Item = &String>| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        texts.for_each(|text| *counts.entry(text.clone()).or_default() += 1);
        counts
    };
    assert_eq!(count(&mut rows.iter().map(|row| &row["data"])), count(&mut lines.iter()));
    let tokens: Vec<u64> = rows.iter().map(|row| row["token"].parse().expect("a number")).collect();
    assert!(tokens.is_sorted(), "tokens go back: {tokens:?}");
    let writers = count(&mut rows.iter().map(|row| &row["replica"]));
    assert_eq!(writers.len(), 3, "all replicas wrote: {writers:?}");
    let content = bench.content();
    for (offset, bytes, line) in places {
        let row = &content[offset as usize..(offset + bytes) as usize];
        assert!(row.ends_with('\n') && content[..offset as usize].ends_with('\n'), "{row:?} is not a whole row");
        assert!(
            row.contains(line.split(['"', '\n', '\r']).next().unwrap_or_default()),
            "{line:?} is not at its offset: {row:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_on_redis_write_each_line_once() {
    every_line_stands_exactly_once(Bench::new(On::Redis), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_on_embedded_lock_write_each_line_once() {
    every_line_stands_exactly_once(Bench::new(On::Embedded), &[]).await;
}

#[tokio::test]
async fn an_array_and_an_object_fill_the_data_columns() {
    let bench = Bench::with_file(On::Embedded, b"city,token,people,note\n");
    let replica = bench.replica(&[]);
    for data in [json!(["Oslo", 709037.10, true]), json!({"note": null, "people": 1.10}), json!("Rom")] {
        let (status, body) = replica.append(json!({ "data": data })).await;
        assert_eq!(status, 201, "{body}");
    }
    assert_eq!(bench.content(), "city,token,people,note\nOslo,1,709037.1,true\n,2,1.1,\nRom,3,,\n");
    let request = replica.request(reqwest::Method::POST, "/append").header("content-type", "application/json");
    let sent = request.body(r#"{"data":{"people":1.10,"city":123456789012345678901234567890}}"#).send().await;
    assert_eq!(sent.expect("an answer").status(), 201);
    assert!(bench.content().ends_with("\n123456789012345678901234567890,4,1.10,\n"), "numbers keep their text");
}
