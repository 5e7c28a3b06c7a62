use crate::support::{Test,Receiver};
async fn smoke(t: Test) { let s = t.server().await; let r = Receiver::start().await; s.publish(&r.url("/"), &[], "x").await; }
engines! { smoke }
