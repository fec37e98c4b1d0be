//! Health checks, with a gRPC server on the agent's socket.

use a3s_box_core::BoxState;
use a3s_box_proto::agent::{State, Status};
use a3s_box_runtime::VmError;

use crate::agent::FakeAgent;
use crate::harness::{ScriptedBox, in_time};

#[tokio::test]
async fn health_check_returns_the_answer_of_the_agent() {
    let demo = ScriptedBox::new("trap 'stopped stopped 143' TERM; started; ready; nap");
    let agent = FakeAgent::serve(demo.make_box_directory().join("agent.sock"));
    let error = in_time(demo.vm.health_check()).await.unwrap_err();
    assert!(matches!(error, VmError::NotBooted), "{error}");
    in_time(demo.vm.boot()).await.unwrap();

    let cases = [
        (Status::Serving, State::Busy, true, BoxState::Busy),
        (Status::Serving, State::Compacting, true, BoxState::Compacting),
        (Status::NotServing, State::Unspecified, false, BoxState::Compacting),
        (Status::Unspecified, State::Ready, false, BoxState::Ready),
        (Status::Serving, State::Unspecified, true, BoxState::Ready),
    ];
    for (status, state, healthy, expected) in cases {
        agent.set_answer(status, state);
        assert_eq!(in_time(demo.vm.health_check()).await.unwrap(), healthy, "{status:?}");
        assert_eq!(demo.vm.state(), expected);
    }

    agent.stop().await;
    assert!(!in_time(demo.vm.health_check()).await.unwrap());
    assert_eq!(demo.vm.state(), BoxState::Ready);

    let agent = FakeAgent::serve(demo.make_box_directory().join("agent.sock"));
    assert!(in_time(demo.vm.health_check()).await.unwrap(), "the client connects again");
    in_time(demo.vm.destroy()).await.unwrap();
    assert!(!in_time(demo.vm.health_check()).await.unwrap());
    drop(agent);
}

#[tokio::test]
async fn health_check_without_an_answer_returns_false() {
    let demo = ScriptedBox::new("started; ready; nap");
    let socket = demo.make_box_directory().join("agent.sock");
    let silent = tokio::net::UnixListener::bind(socket).unwrap();
    in_time(demo.vm.boot()).await.unwrap();
    assert!(!in_time(demo.vm.health_check()).await.unwrap());
    drop(silent);
}
