//! The contract and its reader: served by every replica, with nothing from any other host.

use std::{collections::BTreeSet, fs, process::Command};

use reqwest::Method;
use serde_json::json;

use crate::support::{Bench, On, answer, header, not_run};

/// What stands in quotes behind `href=` and `src=`.
fn links(page: &str) -> BTreeSet<String> {
    let behind = |name: &str| page.split(name).skip(1).filter_map(|rest| rest.split('"').next()).collect::<Vec<_>>();
    [behind("href=\""), behind("src=\"")].concat().into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn contract_is_served_with_an_etag_by_every_replica() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let response = replica.get("/openapi.yaml", &[]).await;
    assert_eq!(
        (header(&response, "content-type"), header(&response, "cache-control")),
        ("text/plain; charset=utf-8", "no-cache")
    );
    let etag = header(&response, "etag").to_owned();
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).expect("readable");
    assert_eq!(response.text().await.expect("text"), file);
    for (path, tag, status) in [
        ("/openapi.yaml", &*etag, 304),
        ("/openapi.yaml", "\"other\"", 200),
        ("/docs", "*", 304),
        ("/docs", &etag, 200),
    ] {
        let request = replica.request(Method::GET, path).header("if-none-match", tag);
        assert_eq!(request.send().await.expect("an answer").status(), status, "{path} {tag}");
    }
}

#[tokio::test]
async fn docs_page_loads_nothing_from_other_hosts() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let page = replica.get("/docs", &[]).await;
    assert_eq!((page.status().as_u16(), header(&page, "content-type")), (200, "text/html; charset=utf-8"));
    assert_eq!(header(&page, "x-content-type-options"), "nosniff");
    let policy = header(&page, "content-security-policy").to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("//") && !policy.contains(": *"), "{policy}");

    let page = page.text().await.expect("text");
    assert!(page.contains("<title>Rowlock: HTTP API</title>"), "{page}");
    assert!(!page.contains("//") && !page.contains("<script>"), "{page}");
    let links = links(&page);
    assert!(links.len() >= 6, "{links:?}");
    for link in links {
        assert!(link.starts_with("/docs/"), "{link}");
        let loaded = replica.get(&link, &[]).await;
        assert_eq!((loaded.status().as_u16(), header(&loaded, "x-content-type-options")), (200, "nosniff"), "{link}");
        let kind = header(&loaded, "content-type").to_owned();
        let content = loaded.bytes().await.expect("bytes");
        match link.rsplit('.').next() {
            Some("css") => {
                let content = String::from_utf8_lossy(&content);
                let loads =
                    |mark| content.split(mark).skip(1).any(|rest| !rest.trim_start_matches('"').starts_with("data:"));
                assert!(kind == "text/css" && !loads("url(") && !content.contains("@import"), "{link}");
            }
            Some("js") => assert_eq!(kind, "text/javascript", "{link}"),
            _ => assert_eq!(kind, "image/png", "{link}"),
        }
    }
    let setup = replica.get("/docs/swagger-initializer.js", &[]).await.text().await.expect("text");
    assert!(setup.contains("\"url\": \"/openapi.yaml\"") && setup.contains("\"validatorUrl\": \"none\""), "{setup}");
    assert!(!setup.contains("://"), "{setup}");
    assert!(setup.contains("\"defaultModelsExpandDepth\": 0"), "the schemas are folded: {setup}");
    assert!(setup.contains("prefers-color-scheme: dark"), "{setup}");
}

#[tokio::test]
async fn what_is_not_below_docs_is_refused_as_everywhere() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    for path in ["/docs/", "/docs/x", "/docs/index.html", "/docs/%ff", "/docs/..%2fopenapi.yaml", "/docs/index.css/x"] {
        let (status, problem) = answer(replica.request(Method::GET, path)).await;
        assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{path}");
    }
    for path in ["/docs", "/docs/index.css", "/openapi.yaml"] {
        let (status, problem) = answer(replica.request(Method::POST, path)).await;
        assert_eq!((status, &problem["code"]), (405, &json!("method_not_allowed")), "{path}");
        let head = replica.request(Method::HEAD, path).send().await.expect("an answer");
        assert!(head.status() == 200 && header(&head, "content-length") != "0", "{path}");
    }
}

#[tokio::test]
async fn a_browser_shows_every_operation_of_the_contract() {
    let Ok(version) = Command::new("chromium").arg("--version").output() else {
        return not_run("chromium is missing");
    };
    assert!(version.status.success());
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let browser = Command::new("timeout")
        .args(["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", bench.folder().join("browser").display()))
        .arg(format!("{}/docs", replica.url))
        .output()
        .expect("timeout runs");
    let (shown, said) = (String::from_utf8_lossy(&browser.stdout), String::from_utf8_lossy(&browser.stderr));
    let contract = replica.get("/openapi.yaml", &[]).await.text().await.expect("text");
    let names: Vec<_> = contract.lines().filter_map(|line| line.trim().strip_prefix("operationId: ")).collect();
    assert!(names.len() >= 11, "{names:?}");
    for name in names {
        assert!(shown.contains(&format!("-{name}\"")), "{name} is not shown: {shown}\n{said}");
    }
    assert!(!said.contains("Content Security Policy"), "{said}");
}

#[tokio::test]
async fn head_answers_as_get_does_and_only_what_has_a_tag_may_be_kept() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    replica.append_text("x").await;
    for path in
        ["/rows", "/rows.csv", "/lock", "/livez", "/readyz?verbose", "/openapi.yaml", "/docs", "/docs/index.css"]
    {
        let whole = replica.get(path, &[]).await;
        let head = replica.request(Method::HEAD, path).send().await.expect("an answer");
        for name in ["content-type", "etag", "cache-control"] {
            assert_eq!(header(&head, name), header(&whole, name), "{path}: {name}");
        }
        // The lock may still be about to be released at the first of the two.
        if path != "/lock" {
            assert_eq!(header(&head, "content-length"), header(&whole, "content-length"), "{path}");
        }
        let kept = if whole.headers().contains_key("etag") { "no-cache" } else { "no-store" };
        assert_eq!((head.status().as_u16(), header(&head, "cache-control")), (200, kept), "{path}");
        assert_ne!(header(&head, "content-length"), "0", "{path}");
        assert_eq!(head.bytes().await.expect("no body").len(), 0, "{path}");
    }
}
