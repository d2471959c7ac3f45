//! `make demo` in a browser: what stands on the page is what happened.

use std::time::Duration;

use idleguard_harness::browser::Browser;
use idleguard_harness::demo::{Demo, page::Page};
use idleguard_harness::project;
use serde_json::{Value, json};

use super::{ms, project_config};

/// A page on which nobody has seen anything yet, and a browser that looks at it.
async fn opened() -> Option<(Page, tokio::task::JoinHandle<String>)> {
    let browser = project::or_skip(Browser::find())?;
    let (page, _) = Page::start(0).await.expect("a free port");
    let url = format!("http://{}/", page.address());
    let dom = tokio::spawn(async move { browser.dom(&url, Duration::from_secs(90)).await.expect("a page") });
    for _ in 0..600 {
        if page.viewers() > 0 {
            return Some((page, dom));
        }
        tokio::time::sleep(ms(50)).await;
    }
    panic!("the browser does not ask for events");
}

/// The text of the element with this attribute, in this lane.
fn text<'a>(dom: &'a str, lane: &str, attribute: &str) -> &'a str {
    let section = dom.split_once(&format!("id=\"{lane}\"")).expect("the lane").1;
    let section = section.split_once("</section>").expect("the lane's end").0;
    let element = section.split_once(attribute).unwrap_or_else(|| panic!("no {attribute} in {section}")).1;
    element.split_once('>').and_then(|(_, rest)| rest.split_once('<')).expect("a text").0
}

fn lane(requests: u64, failed: u64, learnt: u64, connections: &Value) -> Value {
    json!({
        "requests": requests, "failed": failed, "last_failure": if failed > 0 { "503 <b>UC</b>" } else { "" }, "opened": 9, "open": 3,
        "limit_ms": if learnt > 0 { learnt * 9 / 10 } else { 0 }, "learnt_ms": learnt, "connections": connections,
    })
}

#[tokio::test]
async fn connections_age_are_closed_and_break() {
    let Some((page, dom)) = opened().await else { return };
    let snapshot = |elapsed: u64, plain: Value, guarded: Value| {
        let lb = json!({"mode": "silent", "idle_timeout_ms": 3_000});
        json!({"elapsed_ms": elapsed, "lb": lb, "plain": plain, "guarded": guarded})
    };
    let plain = json!([[1, "busy", 0], [2, "idle", 1_500], [3, "dropped", 3_200], [4, "dropped", 3_900]]);
    let guarded = json!([[1, "idle", 900], [2, "idle", 2_650], [3, "idle", 3_050]]);
    page.publish(&snapshot(1_000, lane(10, 0, 0, &plain), lane(10, 0, 3_000, &guarded)));
    let plain = json!([[1, "idle", 200], [2, "busy", 0], [3, "dropped", 3_400], [4, "broken", 4_000]]);
    let guarded = json!([[1, "idle", 1_100], [2, "closed", 2_810], [3, "idle", 3_250]]);
    page.publish(&snapshot(1_200, lane(15, 1, 0, &plain), lane(15, 0, 3_000, &guarded)));
    page.end();
    let dom = dom.await.expect("the browser's task");

    for (name, what, value) in [
        ("plain", "data-number=\"failed\"", "1"),
        ("plain", "data-number=\"share\"", "6.7 %"),
        ("plain", "data-count=\"dropped\"", "1"),
        ("plain", "data-count=\"broken\"", "1"),
        ("plain", "data-count=\"busy\"", "1"),
        ("plain", "class=\"strong\"", "the LB drops at 3.0 s"),
        ("guarded", "data-number=\"failed\"", "0"),
        ("guarded", "data-number=\"requests\"", "15"),
        ("guarded", "data-count=\"closed\"", "1"),
        ("guarded", "data-count=\"watched\"", "1"),
        ("guarded", "class=\"limit\"", "idleguard's limit 2.7 s"),
        ("guarded", "class=\"learnt\"", "learnt: 3.00 s"),
    ] {
        assert_eq!(text(&dom, name, what), value, "{name} {what}");
    }
    // A failure's words are text, whatever an upstream writes.
    assert!(dom.contains("503 &lt;b&gt;UC&lt;/b&gt;"), "{dom}");
    assert!(dom.contains("aria-pressed=\"true\">forgets silently"), "{dom}");
    assert!(dom.contains("The demo has ended"), "{dom}");
    let bars = |class: &str| dom.matches(&format!("class=\"connection {class}")).count();
    assert_eq!((bars("broken"), bars("closed"), bars("dropped"), bars("watched")), (1, 1, 1, 1), "{dom}");
    // Nothing from elsewhere.
    assert!(!dom.contains("src=") && !dom.contains("@import") && !dom.contains("url(http"), "{dom}");
}

#[tokio::test]
async fn the_page_agrees_with_the_table() {
    let Some(config) = project_config() else { return };
    let Some((page, dom)) = opened().await else { return };
    let demo = Demo::start(&config, ms(1_000), 60).await.expect("both Envoys");
    assert!(demo.choose("silent") && !demo.choose("sometimes"));
    let show = async {
        loop {
            page.publish(&demo.snapshot().await);
            tokio::time::sleep(ms(200)).await;
        }
    };
    let comparison = tokio::select! {
        comparison = demo.round(ms(6_000)) => comparison,
        () = show => unreachable!("it shows for ever"),
    };
    page.publish(&demo.snapshot().await);
    page.end();
    let dom = dom.await.expect("the browser's task");

    println!("{comparison}");
    let [plain, guarded] = comparison.counts();
    assert!(plain.1 > 0, "an LB that forgets silently: {comparison}");
    for (name, (requests, failed)) in [("plain", plain), ("guarded", guarded)] {
        assert_eq!(text(&dom, name, "data-number=\"requests\""), requests.to_string(), "{name}: {comparison}");
        assert_eq!(text(&dom, name, "data-number=\"failed\""), failed.to_string(), "{name}: {comparison}");
    }
    assert_ne!(text(&dom, "plain", "data-count=\"broken\""), "0", "{dom}");
    assert_ne!(text(&dom, "guarded", "data-count=\"closed\""), "0", "{dom}");
}
