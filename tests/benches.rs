//! The tests of what the table of figures is made of: they stand beside it, and a benchmark has no test harness.

#![allow(dead_code, reason = "only what can be tested by itself is used here")]
#![allow(clippy::disallowed_methods, reason = "the bans are about the server; this measures it from outside")]

#[path = "../benches/table/arrivals.rs"]
mod arrivals;
#[path = "../benches/table/histogram.rs"]
mod histogram;
#[path = "../benches/table/http.rs"]
mod http;
#[path = "../benches/table/message.rs"]
mod message;
#[path = "../benches/table/trace.rs"]
mod trace;

mod of_histogram {
    use crate::histogram::{Histogram, Percentiles};

    /// What is told of a value: at most 1/128 too much.
    #[track_caller]
    fn check(told: u64, value: u64) {
        assert!(told >= value && told - value <= value / 128, "{told} for {value}");
    }

    #[test]
    fn every_value_is_told_closely() {
        for value in (0..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789, 1 << 39]) {
            let mut histogram = Histogram::default();
            histogram.record(value);
            histogram.record(u64::MAX);
            check(histogram.percentiles().p50, value);
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), Percentiles::default());
        for value in 1..=1000 {
            histogram.record(value);
        }
        let found = histogram.percentiles();
        for (told, value) in [(found.p50, 500), (found.p90, 900), (found.p99, 990), (found.p999, 999)] {
            check(told, value);
        }
        assert_eq!((found.count, found.max), (1000, 1000));
    }

    #[test]
    fn one_value_is_every_percentile() {
        let mut histogram = Histogram::default();
        histogram.record(5_000_001);
        let all = histogram.percentiles();
        assert_eq!([all.p50, all.p90, all.p99, all.p999, all.max], [5_000_001; 5]);
    }
}

mod of_http {
    use crate::http::{Head, head, status};

    #[test]
    fn heads_are_read() {
        let text = b"HTTP/1.1 202 Accepted\r\nContent-LENGTH:  12\r\nconnection: close\r\n\r\nbody";
        let expected = Head { length: text.len() - 4, body: 12, close: true };
        assert_eq!(head(text).unwrap(), Some(expected));
        assert_eq!(status(text).unwrap(), 202);
        let text = b"POST /s/1 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(head(text).unwrap(), Some(Head { length: text.len(), body: 0, close: false }));
    }

    #[test]
    fn a_part_of_a_head_is_none() {
        assert_eq!(head(b"").unwrap(), None);
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n").unwrap(), None);
    }

    #[test]
    fn what_would_be_misread_is_refused() {
        head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err();
        head(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n").unwrap_err();
        status(b"ICY 200 OK\r\n\r\n").unwrap_err();
    }
}

mod of_messages {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use crate::message::{SHORTEST, Slots, body, read};

    #[test]
    fn numbers_are_read_where_they_were_written() {
        let mut text = body(200);
        assert_eq!(text.len(), 200);
        assert_eq!(body(0).len(), SHORTEST);
        let [slots] = Slots::find_all(&text)[..] else { panic!("one body in {text}") };
        let mut bytes = std::mem::take(&mut text).into_bytes();
        slots.write(&mut bytes, 1_234_567_890, 9_876_543_210_123_456);
        assert_eq!(read(&bytes), Some((1_234_567_890, 9_876_543_210_123_456)));
        slots.write(&mut bytes, 7, 8);
        assert_eq!(read(&bytes), Some((7, 8)));
        serde_json::from_slice::<serde_json::Value>(&bytes).expect("it is JSON");
    }

    #[test]
    fn numbers_in_a_batch_are_found() {
        let item = serde_json::to_string(&body(60)).unwrap();
        let text = format!(r#"[{{"destination":"http://h/ts","body":{item}}},{{"body":{item}}}]"#);
        let slots = Slots::find_all(&text);
        let mut bytes = text.into_bytes();
        for (slots, number) in slots.iter().zip([5, 6]) {
            slots.write(&mut bytes, number, number * 10);
        }
        let items: serde_json::Value = serde_json::from_slice(&bytes).expect("it is JSON");
        let read = |at: usize| read(items[at]["body"].as_str().unwrap().as_bytes());
        assert_eq!([read(0), read(1)], [Some((5, 50)), Some((6, 60))]);
    }

    #[test]
    fn a_callbacks_source_is_read() {
        let notice = format!(r#"{{"status":200,"sourceBody":"{}","x":1}}"#, STANDARD.encode(body(200)));
        assert_eq!(read(notice.as_bytes()), Some((0, 0)));
    }

    #[test]
    fn anything_else_has_no_numbers() {
        for text in ["", "{}", r#"{"seq":"1"}"#, r#"{"seq":"00000000x2","ts":"0000000000000001"}"#] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }
}

mod of_arrivals {
    use crate::arrivals::Arrivals;
    use crate::message::{Slots, body};

    fn numbered(seq: u64, ts: u64) -> Vec<u8> {
        let text = body(60);
        let slots = Slots::find_all(&text)[0];
        let mut bytes = text.into_bytes();
        slots.write(&mut bytes, seq, ts);
        bytes
    }

    #[test]
    fn each_message_counts_once() {
        let mut arrivals = Arrivals::default();
        for (seq, now_us) in [(0, 1000), (3, 1500), (3, 9000), (200, 2000)] {
            arrivals.deliver("/s/2", &numbered(seq, 900), now_us);
        }
        let stats = arrivals.stats("2?sent=5").unwrap();
        assert_eq!((stats.unique, stats.duplicates, stats.missing), (3, 1, vec![1, 2, 4]));
        assert_eq!((stats.first_us, stats.last_us), (1000, 2000));
        assert_eq!((stats.latency.count, stats.latency.max), (3, 1100));
        assert_eq!(arrivals.stats("0?sent=2").unwrap().missing, [0, 1]);
    }

    #[test]
    fn what_cannot_be_read_is_foreign() {
        let mut arrivals = Arrivals::default();
        arrivals.deliver("/s/1", b"hello", 1);
        arrivals.deliver("/elsewhere", &numbered(1, 1), 1);
        arrivals.deliver("/s/-1", &numbered(1, 1), 1);
        let stats = arrivals.stats("7?sent=1").unwrap();
        assert_eq!((stats.foreign, stats.unique, stats.missing), (3, 0, vec![0]));
    }
}

mod of_traces {
    use crate::trace::judge;

    const WRITE: &str = r#"7  pwrite64(9</d/homing.db-wal>, "\0msg_a1POST\0", 4096, 32) = 4096"#;
    const OTHER_WRITE: &str = r#"7  pwrite64(9</d/homing.db-wal>, "\0msg_b2POST\0", 4096, 32) = 4096"#;
    const SYNC: &str = "7  fdatasync(9</d/homing.db-wal>) = 0";
    const SYNC_BEGINS: &str = "7  fdatasync(9</d/homing.db-wal> <unfinished ...>";
    const SYNC_ENDS: &str = "7  <... fdatasync resumed>) = 0";
    const ANSWER: &str = r#"8  sendto(5<socket:[1]>, "HTTP/1.1 200 OK\r\n\r\n{\"messageId\":\"msg_a1\"}", 90, MSG_NOSIGNAL, NULL, 0) = 90"#;

    #[track_caller]
    fn check(lines: &[&str], violations: &[&str]) {
        let verdict = judge(&lines.join("\n")).expect("it can be read");
        assert_eq!(verdict.violations, violations, "{verdict:?}");
        assert_eq!(verdict.accepted, 1);
    }

    #[test]
    fn an_answer_behind_a_sync_of_its_data_is_right() {
        check(&[WRITE, SYNC, ANSWER], &[]);
        check(&[WRITE, SYNC_BEGINS, OTHER_WRITE, SYNC_ENDS, ANSWER], &[]);
        // Its page is written again for another message, which is none of its business.
        check(&[WRITE, SYNC, WRITE, ANSWER], &[]);
    }

    #[test]
    fn an_answer_before_its_sync_is_wrong() {
        check(&[WRITE, ANSWER], &["msg_a1"]);
        check(&[WRITE, ANSWER, SYNC], &["msg_a1"]);
        check(&[WRITE, SYNC_BEGINS, ANSWER, SYNC_ENDS], &["msg_a1"]);
        check(&[WRITE, SYNC_BEGINS, ANSWER], &["msg_a1"]);
    }

    #[test]
    fn a_sync_that_began_before_the_write_does_not_count() {
        check(&[SYNC, WRITE, ANSWER], &["msg_a1"]);
        check(&[SYNC_BEGINS, WRITE.replacen('7', "6", 1).as_str(), SYNC_ENDS, ANSWER], &["msg_a1"]);
    }

    #[test]
    fn a_sync_of_another_file_or_a_failed_one_does_not_count() {
        check(&[WRITE, &SYNC.replace("-wal", ""), ANSWER], &["msg_a1"]);
        check(&[WRITE, &SYNC.replace("/d/", "/e/"), ANSWER], &["msg_a1"]);
        check(&[WRITE, &SYNC.replace("= 0", "= -1 EIO (Input/output error)"), ANSWER], &["msg_a1"]);
    }

    #[test]
    fn an_answer_whose_data_was_never_written_is_wrong() {
        check(&[OTHER_WRITE, SYNC, ANSWER], &["msg_a1"]);
    }

    #[test]
    fn postgres_log_counts_and_its_tables_do_not() {
        let to = |line: &str, file| line.replace("/d/homing.db-wal", file);
        let (log, table) = ("/p/data/pg_wal/000000010000000000000001", "/p/data/base/5/16384");
        check(&[&to(WRITE, log), &to(SYNC, log), ANSWER], &[]);
        check(&[&to(WRITE, table), &to(SYNC, table), ANSWER], &["msg_a1"]);
    }

    #[test]
    fn every_id_of_an_answer_is_judged() {
        let both = r#"8  writev(5<socket:[1]>, [{iov_base="HTTP/1.1 200 OK\r\n\r\n", iov_len=19}, {iov_base="[{\"messageId\":\"msg_a1\"},{\"messageId\":\"msg_b2\"}]", iov_len=50}], 2 <unfinished ...>"#;
        let verdict = judge(&[WRITE, SYNC, OTHER_WRITE, both].join("\n")).unwrap();
        assert_eq!((verdict.accepted, verdict.violations), (2, vec!["msg_b2".to_owned()]));
        assert_eq!((verdict.log_writes, verdict.log_syncs), (2, 1));
    }

    #[test]
    fn a_trace_that_is_cut_off_is_refused() {
        judge("7  pwrite64(9</d/x-wal>, \"\\0\"..., 4096, 32) = 4096").unwrap_err();
        judge("nonsense").unwrap_err();
    }

    #[test]
    fn what_else_stands_in_a_trace_is_passed_over() {
        let noise = [
            "7  +++ exited with 0 +++",
            "7  --- SIGUSR1 {si_signo=SIGUSR1} ---",
            "9  <... write resumed>) = 1",
            "8  write(1<pipe:[3]>, \"HTTP/1.1\", 8) = 8",
        ];
        check(&[noise.as_slice(), &[WRITE, SYNC, ANSWER]].concat(), &[]);
    }
}
