//! `make demo` in a browser: what stands on the page is what happened.

use std::time::Duration;

use idleguard_harness::browser::Browser;
use idleguard_harness::demo::{Demo, Timeouts, page::Page};
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

/// The text of the element with this attribute, on this side.
fn text<'a>(dom: &'a str, side: &str, attribute: &str) -> &'a str {
    let section = dom.split_once(&format!("id=\"{side}\"")).expect("the side").1;
    let section = section.split_once("</section>").expect("the side's end").0;
    let element = section.split_once(attribute).unwrap_or_else(|| panic!("no {attribute} in {section}")).1;
    element.split_once('>').and_then(|(_, rest)| rest.split_once('<')).expect("a text").0
}

fn side(requests: u64, failed: u64, [lane, found]: [u64; 2], connections: &Value, reuses: &Value) -> Value {
    json!({
        "requests": requests, "failed": failed, "last_failure": if failed > 0 { "503 <b>UC</b>" } else { "" }, "opened": 9, "open": 3,
        "connections": connections, "reuses": reuses, "limit_ms": found * 9 / 10, "lane_ms": lane, "found_ms": found, "stale_failures": 0,
    })
}

#[tokio::test]
async fn connections_age_are_closed_and_break() {
    let Some((page, dom)) = opened().await else { return };
    let snapshot = |elapsed: u64, plain: Value, guarded: Value| {
        let lb = json!({"mode": "silent", "idle_timeout_ms": 3_000, "choice_ms": [6_000, 3_000]});
        json!({"elapsed_ms": elapsed, "lb": lb, "plain": plain, "guarded": guarded})
    };
    let plain = json!([[1, "busy", 0], [2, "idle", 1_500], [3, "dropped", 3_200], [4, "dropped", 3_900]]);
    let guarded = json!([[1, "idle", 500], [2, "idle", 850], [3, "scout", 2_050]]);
    page.publish(&snapshot(
        1_000,
        side(10, 0, [0, 0], &plain, &json!([[400, 0], [2_500, 0]])),
        side(10, 0, [4_000, 0], &guarded, &json!([[400, 0]])),
    ));
    let plain = json!([[1, "idle", 200], [2, "busy", 0], [3, "dropped", 3_400], [4, "broken", 4_000]]);
    let guarded = json!([[1, "idle", 700], [2, "closed", 905], [3, "scout", 2_250]]);
    page.publish(&snapshot(
        1_200,
        side(15, 1, [0, 0], &plain, &json!([[4_000, 1]])),
        side(15, 0, [900, 3_000], &guarded, &json!([[420, 0]])),
    ));
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
        ("guarded", "data-count=\"scout\"", "1"),
        ("guarded", "data-number=\"lane\"", "900 ms"),
        ("guarded", "class=\"lane\"", "lane 900 ms"),
        ("guarded", "class=\"found\"", "found out: 3.00 s"),
    ] {
        assert_eq!(text(&dom, name, what), value, "{name} {what}");
    }
    // A failure's words are text, whatever an upstream writes.
    assert!(dom.contains("503 &lt;b&gt;UC&lt;/b&gt;"), "{dom}");
    assert!(dom.contains("aria-pressed=\"true\">forgets silently"), "{dom}");
    assert!(dom.contains("aria-pressed=\"true\">at 3.0 s") && dom.contains("aria-pressed=\"false\">at 6.0 s"), "{dom}");
    let reuses = |class: &str| dom.matches(&format!("class=\"{class}\"")).count();
    assert_eq!((reuses("reuse"), reuses("reuse lost")), (3, 1), "two idle ages on the left, one on the right: {dom}");
    assert!(dom.contains("The demo has ended"), "{dom}");
    let bars = |class: &str| dom.matches(&format!("class=\"connection {class}")).count();
    assert_eq!((bars("broken"), bars("closed"), bars("dropped"), bars("scout")), (1, 1, 1, 1), "{dom}");
    // Nothing from elsewhere.
    assert!(!dom.contains("src=") && !dom.contains("@import") && !dom.contains("url(http"), "{dom}");
}

#[tokio::test]
async fn the_page_agrees_with_the_table() {
    let Some(config) = project_config() else { return };
    let Some((page, dom)) = opened().await else { return };
    // As in `envoy.yaml`, in less time.
    let config = config.lanes(&["700ms", "300ms"]).policy("initial_limit", "700ms");
    let timeouts = Timeouts { first: ms(1_000), then: ms(400) };
    let demo = Demo::start(&config, timeouts, 60).await.expect("both Envoys");
    assert!(!demo.choose("sometimes"));
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
    // The timeout falls below the first lane, nobody is told, and it is found out: whose reset is it that two requests meet?
    assert!(guarded.1 * 4 < plain.1, "{comparison}");
    assert_eq!(text(&dom, "guarded", "data-number=\"lane\""), "300 ms", "{comparison}");
    let table = comparison.to_string();
    assert!(table.lines().any(|line| line.starts_with("lanes in force") && line.ends_with("700ms, 300ms")), "{table}");
}
