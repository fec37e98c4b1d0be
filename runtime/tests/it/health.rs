//! Health checks, against a real server on the box's socket.

use a3s_box_core::BoxState;
use a3s_box_proto::agent::{State, Status};
use a3s_box_runtime::VmError;

use crate::agent::FakeAgent;
use crate::harness::{ScriptedBox, soon};

#[tokio::test]
async fn health_is_what_the_agent_answers() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; ready; nap");
    let agent = FakeAgent::serve(demo.state_directory().join("agent.sock"));
    let error = soon(demo.vm.health_check()).await.unwrap_err();
    assert!(matches!(error, VmError::NotBooted), "{error}");
    soon(demo.vm.boot()).await.unwrap();

    let cases = [
        (Status::Serving, State::Busy, true, BoxState::Busy),
        (Status::Serving, State::Compacting, true, BoxState::Compacting),
        (Status::NotServing, State::Unspecified, false, BoxState::Compacting),
        (Status::Unspecified, State::Ready, false, BoxState::Ready),
        (Status::Serving, State::Unspecified, true, BoxState::Ready),
    ];
    for (status, state, healthy, expected) in cases {
        agent.say(status, state);
        assert_eq!(soon(demo.vm.health_check()).await.unwrap(), healthy, "{status:?}");
        assert_eq!(demo.vm.state(), expected);
    }

    agent.vanish().await;
    assert!(!soon(demo.vm.health_check()).await.unwrap());
    assert_eq!(demo.vm.state(), BoxState::Ready);

    let agent = FakeAgent::serve(demo.state_directory().join("agent.sock"));
    assert!(soon(demo.vm.health_check()).await.unwrap(), "the connection is made again");
    soon(demo.vm.destroy()).await.unwrap();
    assert!(!soon(demo.vm.health_check()).await.unwrap());
    drop(agent);
}

#[tokio::test]
async fn agent_that_never_answers_is_not_healthy() {
    let demo = ScriptedBox::new("started; ready; nap");
    let socket = demo.state_directory().join("agent.sock");
    let silent = tokio::net::UnixListener::bind(socket).unwrap();
    soon(demo.vm.boot()).await.unwrap();
    assert!(!soon(demo.vm.health_check()).await.unwrap());
    drop(silent);
}
