//! The script behind `make cluster`, on a host of its own, for it uses the ports that it always uses.

use std::path::PathBuf;
use std::process::{Command, Output};

use sensorium_tests::{Network, binary, within};
use tempfile::TempDir;

const HOST: &str = "local";

/// A cluster that the script has started; it is stopped at the latest when this is dropped.
struct Local {
    network: Network,
    folder: TempDir,
}

impl Local {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.network.namespace(HOST), "../cluster/local/cluster.sh"]).args(words);
        command.env("SENSORIUM_CLUSTER", self.folder.path());
        command
    }

    /// What the script says.
    async fn run(&self, words: &[&str]) -> String {
        let mut command = self.command(words);
        let ran = within(tokio::task::spawn_blocking(move || command.output())).await;
        let Output { status, stdout, stderr } = ran.unwrap().unwrap();
        let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(status.success(), "cluster.sh {words:?}: {said}");
        said
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // whatever the test has come to
        let _ = self.command(&["down"]).output();
    }
}

#[tokio::test]
async fn the_script_starts_rolls_and_stops_a_cluster() {
    let Some(network) = Network::start(&[HOST], &[]) else { return };
    let local = Local { network, folder: TempDir::new().unwrap() };
    let [server, loadtest]: [PathBuf; 2] = [binary(), binary().with_file_name("loadtest")];
    let said = local.run(&["up", server.to_str().unwrap()]).await;
    for name in ["etcd", "nats", "redis", "worker-01", "worker-02", "worker-03", "gateway-1", "gateway-2"] {
        assert!(said.contains(&format!("{name} is ready")), "{name} in {said}");
    }
    for model in ["minilm", "whisper-base", "smollm2-135m"] {
        assert!(said.contains(model), "{model} in the status: {said}");
    }
    // once more finds it up
    let again = local.run(&["up", server.to_str().unwrap()]).await;
    assert!(again.contains("gateway-2 is ready"), "{again}");

    let said = local.run(&["roll", loadtest.to_str().unwrap()]).await;
    let (requests, _) = said.split_once(" requests meanwhile, none failed").unwrap_or_else(|| panic!("{said}"));
    let requests: u64 = requests.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(requests > 100, "{said}");
    assert!(said.contains("gateway-2 stopped") && said.contains("etcd stopped"), "{said}");

    let said = local.run(&["down"]).await;
    assert_eq!(said.matches(" stopped").count(), 8, "{said}");
    assert_eq!(local.run(&["down"]).await, "", "nothing is left to stop");
}
