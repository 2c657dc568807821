//! How the live page is served. `make test-page` tests it in a browser.

use std::{collections::BTreeSet, fs, path::Path};

use reqwest::Method;
use serde_json::json;

use crate::support::{Bench, On, answer, header};

/// The files of the page in the repository, each with its path on the server.
fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
    let names = fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| {
            let name = name.into_string().expect("ASCII");
            let content = fs::read(folder.join(&name)).expect("readable");
            (if name == "index.html" { "/".to_owned() } else { format!("/web/{name}") }, content)
        })
        .collect()
}

#[tokio::test]
async fn page_is_served_with_validators_and_compression() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let files = files();
    assert!(files.len() > 10, "{}", files.len());
    for (path, content) in files {
        let served = replica.get(&path, &[]).await;
        let kind = match path.rsplit('.').next() {
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!((served.status().as_u16(), header(&served, "content-type")), (200, kind), "{path}");
        let etag = header(&served, "etag").to_owned();
        assert_eq!(served.bytes().await.expect("bytes"), content, "{path}");
        for (tag, status) in [(&*etag, 304), (&*format!("W/{etag}"), 304), ("\"other\"", 200)] {
            let again =
                replica.request(Method::GET, &path).header("if-none-match", tag).send().await.expect("an answer");
            assert_eq!((again.status().as_u16(), header(&again, "etag")), (status, &*etag), "{path} {tag}");
            assert_eq!(header(&again, "cache-control"), "no-cache", "{path}");
        }
        let packed = replica.request(Method::GET, &path).header("accept-encoding", "gzip").send().await;
        let packed = packed.expect("an answer");
        assert_eq!(header(&packed, "content-encoding"), "gzip", "{path}");
        assert_eq!(header(&packed, "etag"), format!("W/{etag}"), "{path}");
        assert!(packed.bytes().await.expect("bytes").len() < content.len(), "{path}");
        let head = replica.request(Method::HEAD, &path).send().await.expect("an answer");
        let length = content.len().to_string();
        assert_eq!((header(&head, "content-length"), header(&head, "etag")), (&*length, &*etag), "{path}");
    }
}

#[tokio::test]
async fn page_has_a_strict_policy_and_keeps_to_it() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    for (path, content) in files() {
        let served = replica.get(&path, &[]).await;
        let policy = header(&served, "content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        for part in
            ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("//") && !policy.contains('*'), "{policy}");
        assert_eq!(header(&served, "x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header(&served, "referrer-policy"), "no-referrer", "{path}");

        // The files contain nothing that the policy forbids, and no address of another host but the SVG namespace.
        let text = String::from_utf8(content).expect("UTF-8").replace("http://www.w3.org/2000/svg", "");
        for word in
            ["://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", " onclick="]
        {
            assert!(!text.contains(word), "{path}: {word}");
        }
    }
    let page = replica.get("/", &[]).await.text().await.expect("text");
    let linked = |name: &str| page.split(name).skip(1).filter_map(|rest| rest.split('"').next()).collect::<Vec<_>>();
    let links: BTreeSet<_> = [linked(" href=\""), linked(" src=\"")].concat().into_iter().collect();
    assert!(links.len() >= 4, "{links:?}");
    for link in links.iter().filter(|link| !link.starts_with('#')) {
        assert_eq!(replica.get(link, &[]).await.status(), 200, "{link}");
    }
}

#[tokio::test]
async fn page_is_public_and_its_data_is_not() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_API_TOKENS", "read:token-of-a-reader")]);
    for (path, _) in files() {
        for authorization in ["", "Bearer token-of-a-reader", "Bearer wrong"] {
            let request = replica.request(Method::GET, &path).header("authorization", authorization);
            assert_eq!(request.send().await.expect("an answer").status(), 200, "{path} {authorization}");
        }
    }
    for path in ["/events", "/lock", "/web", "/web/", "/web/x/../../lock"] {
        assert_ne!(replica.get(path, &[]).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn unknown_page_file_is_not_found() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    for path in ["/web", "/web/", "/web/x", "/web/index.html", "/web/%ff", "/web/..%2fCargo.toml", "/web/page.css/x"] {
        let (status, problem) = answer(replica.request(Method::GET, path)).await;
        assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{path}");
    }
    for path in ["/", "/web/page.css"] {
        let (status, problem) = answer(replica.request(Method::POST, path)).await;
        assert_eq!((status, &problem["code"]), (405, &json!("method_not_allowed")), "{path}");
    }
}
