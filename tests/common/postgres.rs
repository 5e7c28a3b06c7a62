//! Databases on the cluster that `./scripts/test` starts, each a copy of one that was migrated once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// The variable that holds the cluster's URL, without a database name.
const CLUSTER: &str = "HOMING_TEST_POSTGRES";

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The cluster's URL without a slash at its end. Fails the test where none is named: a skipped test looks like a passed
/// one.
fn cluster() -> String {
    let url = std::env::var(CLUSTER).unwrap_or_else(|_| {
        panic!(
            "{CLUSTER} is not set, so there is no PostgreSQL to test on; run the tests with ./scripts/test"
        )
    });
    url.trim_end_matches('/').to_owned()
}

/// The URL of a database of the cluster.
pub(crate) fn url(name: &str) -> String {
    format!("{}/{name}", cluster())
}

/// Creates a database with the current schema.
pub(crate) async fn create(name: &str) {
    let mut admin = connect("postgres").await;
    let template = template(&mut admin).await;
    run(&mut admin, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
    admin.close().await.expect("closing the connection");
}

/// Creates a database without a schema.
pub(crate) async fn create_empty(name: &str) {
    let mut admin = connect("postgres").await;
    run(&mut admin, format!("CREATE DATABASE {name}")).await;
    admin.close().await.expect("closing the connection");
}

/// Drops a database, whoever is connected to it.
pub(crate) async fn drop(name: &str) {
    let mut admin = connect("postgres").await;
    run(&mut admin, format!("DROP DATABASE {name} WITH (FORCE)")).await;
    admin.close().await.expect("closing the connection");
}

/// The name of the migrated database. Tests are processes of their own: the first one makes it, the others wait.
async fn template(admin: &mut PgConnection) -> String {
    let mut digest = DefaultHasher::new();
    for migration in MIGRATIONS.iter() {
        migration.checksum.hash(&mut digest);
    }
    let name = format!("homing_template_{:016x}", digest.finish());
    if exists(admin, &name).await {
        return name;
    }
    run(admin, "SELECT pg_advisory_lock(4603)".to_owned()).await;
    if !exists(admin, &name).await {
        let unfinished = format!("{name}_unfinished");
        run(admin, format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)")).await;
        run(admin, format!("CREATE DATABASE {unfinished}")).await;
        let mut connection = connect(&unfinished).await;
        MIGRATIONS.run(&mut connection).await.expect("the migrations");
        connection.close().await.expect("closing the connection");
        // Nobody may be connected to what is copied, autovacuum included.
        run(admin, format!("ALTER DATABASE {unfinished} ALLOW_CONNECTIONS false")).await;
        run(admin, format!("ALTER DATABASE {unfinished} RENAME TO {name}")).await;
    }
    run(admin, "SELECT pg_advisory_unlock(4603)".to_owned()).await;
    name
}

async fn exists(admin: &mut PgConnection, name: &str) -> bool {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(admin)
        .await
        .expect("a query on the cluster")
}

async fn connect(database: &str) -> PgConnection {
    let url = url(database);
    PgConnection::connect(&url).await.unwrap_or_else(|error| {
        panic!("can't connect to {url} ({CLUSTER}): {error}; run the tests with ./scripts/test")
    })
}

async fn run(admin: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(admin).await.expect("a statement on the cluster");
}
