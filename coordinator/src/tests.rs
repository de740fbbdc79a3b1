use super::*;

fn founder(folder: &Path) -> Config {
    Config {
        name: MemberName::parse("c1").unwrap(),
        data_dir: folder.to_owned(),
        listen: "127.0.0.1:0".into(),
        advertise: None,
        bootstrap: true,
        join: Vec::new(),
        token_file: None,
        insecure_network: false,
        tick: TICK,
        snapshot_every: SNAPSHOT_EVERY,
    }
}

/// Runs a coordinator until it serves, or says why it does not.
async fn start_and_stop(config: &Config) -> Result<(), CoordinatorError> {
    let (started, serves) = oneshot::channel();
    let (stop, shutdown) = tokio_watch::channel(false);
    let running = run(config.clone(), Host::system(), started, shutdown);
    let stopping = async {
        let _ = serves.await;
        stop.send_replace(true);
    };
    tokio::join!(running, stopping).0
}

#[test]
fn a_lost_membership_costs_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let config = founder(folder.path());
    let token = || std::fs::read(folder.path().join(ADMIN_TOKEN)).unwrap();
    actix::System::new().block_on(tokio::task::LocalSet::new().run_until(async {
        start_and_stop(&config).await.unwrap();
        let first = token();
        std::fs::remove_file(folder.path().join(MEMBERSHIP)).unwrap();
        let refused = start_and_stop(&config).await.unwrap_err();
        assert!(matches!(refused, CoordinatorError::Log(log::LogError::Stray(_))), "{refused}");
        assert_eq!(token(), first);
    }));
}
