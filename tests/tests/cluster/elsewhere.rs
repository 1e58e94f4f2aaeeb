//! Verbs that know several gateways: the first that answers is asked, and another one when that is lost.

use std::time::Duration;

use sensorium_tests::{Cluster, Node, Process, Server, eventually};
use serde_json::Value;

use super::steady::{models, with_jobs};

fn addresses(gateways: &[&Node]) -> String {
    gateways.iter().map(|gateway| format!("http://{}", gateway.grpc)).collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn a_watch_goes_on_at_another_gateway() {
    let mut cluster = with_jobs(Cluster::new(models()).await).await.of(3, 1).await;
    let folder = tempfile::tempdir().unwrap();
    for at in 0..20 {
        std::fs::write(folder.path().join(format!("{at}.txt")), format!("sentence {at}")).unwrap();
    }
    let folder = folder.path().display().to_string();
    // nothing of the job is done before both have lost their gateways
    cluster.workers[0].process.signal("STOP");
    let [first, second, third] = [0, 1, 2].map(|at| &cluster.gateways[at]);
    let killed = addresses(&[first, second, third]);
    let submitting = ["jobs", "submit", &folder, "--no-answer", "-o", "json", "--server", &killed];
    let submitting = Server::verb_that_goes_on(&submitting);
    let id = eventually("the id is told at once", async || {
        let log = submitting.log();
        let job: Value = serde_json::from_str(log.lines().find(|line| line.starts_with('{'))?).unwrap();
        Some(job["id"].as_str().unwrap().to_owned())
    })
    .await;
    // repeated, or with commas: both are lists
    let (second_alone, third_alone) = (addresses(&[second]), addresses(&[third]));
    let frozen = ["jobs", "watch", &id, "-o", "json", "--server", &second_alone, "--server", &third_alone];
    let watching = Server::verb_that_goes_on(&frozen);
    // it has said nothing yet that could be waited for
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.process.signal("KILL");
    second.process.signal("STOP");
    cluster.workers[0].process.signal("CONT");
    let over = async |verb: Process| {
        let exit = verb.wait(Duration::from_secs(120)).await;
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        assert!(!exit.log.contains("error"), "{}", exit.log);
        exit.log
    };
    assert!(over(submitting).await.lines().last().unwrap().contains("\"succeeded\""));
    assert!(over(watching).await.contains("\"succeeded\""));

    // every verb passes over those that are away, refuse or are frozen
    let all = addresses(&[&cluster.gateways[0], &cluster.gateways[1], &cluster.gateways[2]]);
    let mut lines = vec![vec!["models", "list"], vec!["status"], vec!["actors", "tree"], vec!["card", "minilm"]];
    lines.extend([vec!["jobs", "list"], vec!["jobs", "results", &id], vec!["infer", "--text", "a", "--no-answer"]]);
    for line in lines {
        let (code, output, errors) = Server::verb(&[&line[..], &["--server", &all]].concat()).await;
        assert!(code == Some(0) && !output.is_empty(), "{line:?}: {errors}");
    }
    // nobody is there: all are named, and a frozen one alone does not hold a verb for ever
    let away = addresses(&[&cluster.gateways[0], &cluster.gateways[1]]);
    let (code, _, errors) = Server::verb(&["models", "list", "--server", &away]).await;
    assert_eq!(code, Some(3), "{errors}");
    assert!([0, 1].iter().all(|&at| errors.contains(&cluster.gateways[at].grpc.to_string())), "{errors}");
    let alone = addresses(&[&cluster.gateways[1]]);
    let (code, _, errors) = Server::verb(&["models", "list", "--server", &alone, "-o", "json"]).await;
    assert!(code == Some(3) && errors.contains("UNAVAILABLE"), "{code:?} {errors}");
    cluster.gateways[1].process.signal("CONT");
    cluster.gateways[0].resurrect();
    cluster.ready().await;
}
