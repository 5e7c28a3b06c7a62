//! Whose address messages carry, behind proxies.

use serde_json::json;

use crate::support::Test;

engines! {
    the_callers_address_is_read_in_every_form,
    only_trusted_proxies_are_believed,
}

async fn the_callers_address_is_read_in_every_form(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8")]).await;
    for (headers, expected) in [
        (vec![("X-Forwarded-For", "192.0.2.7")], "192.0.2.7"),
        (vec![("X-Forwarded-For", "192.0.2.7:4711")], "192.0.2.7"),
        (vec![("X-Forwarded-For", "192.0.2.7:4711, 10.1.2.3:80")], "192.0.2.7"),
        (vec![("X-Forwarded-For", "198.51.100.1, [2001:DB8::1]:123")], "2001:db8::1"),
        (vec![("X-Forwarded-For", "2001:db8::1 ,10.1.2.3")], "2001:db8::1"),
        (vec![("X-Forwarded-For", "::ffff:192.0.2.7")], "192.0.2.7"),
        (
            vec![
                ("X-Forwarded-For", "198.51.100.1"),
                ("X-Forwarded-For", "192.0.2.7"),
                ("X-Forwarded-For", "10.0.0.9"),
            ],
            "192.0.2.7",
        ),
        (vec![("X-Forwarded-For", "192.0.2.7, unknown")], "127.0.0.1"),
        (vec![("X-Forwarded-For", "192.0.2.7, unknown, 10.1.2.3")], "10.1.2.3"),
        (vec![("Forwarded", "for=192.0.2.7;proto=https;by=10.0.0.1")], "192.0.2.7"),
        (vec![("Forwarded", "For=\"[2001:db8:cafe::17]:4711\"")], "2001:db8:cafe::17"),
        (
            vec![("Forwarded", "for=198.51.100.1, for=192.0.2.7, for=\"10.0.0.9:_x\";host=\"a,b;c\"")],
            "192.0.2.7",
        ),
        (vec![("Forwarded", "for=192.0.2.7"), ("Forwarded", "proto=http;for=10.0.0.9")], "192.0.2.7"),
        (vec![("Forwarded", "for=192.0.2.7, for=_hidden")], "127.0.0.1"),
        (vec![("Forwarded", "for=198.51.100.1"), ("X-Forwarded-For", "192.0.2.7")], "192.0.2.7"),
    ] {
        for target in ["/v2/publish/http://e.invalid/", "/v2/enqueue/q/http://e.invalid/", "/v2/batch"] {
            let call = server.call("POST", target).headers(&headers).header("Upstash-Delay", "1d");
            let item = json!([{"destination": "http://e.invalid/", "headers": {"Upstash-Delay": "1d"}}]);
            let answer = call.body(item.to_string()).send().await.json(200);
            let id = answer.get(0).unwrap_or(&answer)["messageId"].as_str().expect("an id").to_owned();
            let message = server.message(&id).await;
            assert_eq!(
                (&message["callerIP"], &message["callerIp"]),
                (&json!(expected), &json!(expected)),
                "{headers:?}"
            );
        }
        let call = server.call("POST", "/v2/schedules/http://e.invalid/").headers(&headers);
        call.headers(&[("Upstash-Cron", "@yearly"), ("Upstash-Schedule-Id", "s")]).send().await.json(200);
        assert_eq!(server.get_json("/v2/schedules/s").await["callerIP"], expected, "{headers:?}");
    }
}

async fn only_trusted_proxies_are_believed(t: Test) {
    let server = t.server_with(&[("HOMING_TRUSTED_PROXIES", "10.0.0.0/8")]).await;
    let headers = [("Upstash-Delay", "1d"), ("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for=192.0.2.7")];
    let id = server.publish("http://e.invalid/", &headers, "x").await;
    assert_eq!(server.message(&id).await["callerIP"], "127.0.0.1");
}
