//! The promises about segments: who may create, open and unlink them, what is
//! refused, and what the dead, the full and the hostile leave behind.

#[path = "../kit/mod.rs"]
mod kit;

mod creation;
mod descriptors;
mod hostile;
mod opening;
mod reboot;
mod refusals;
mod snapshot;
mod space;
mod support;
mod unlinking;
mod values;

fn main() {
    let tests = [
        opening::TESTS,
        refusals::TESTS,
        creation::TESTS,
        unlinking::TESTS,
        reboot::TESTS,
        space::TESTS,
        descriptors::TESTS,
        values::TESTS,
        snapshot::TESTS,
        hostile::TESTS,
    ];
    let roles = [
        opening::ROLES,
        refusals::ROLES,
        creation::ROLES,
        unlinking::ROLES,
        space::ROLES,
        descriptors::ROLES,
        hostile::ROLES,
    ]
    .concat();
    kit::run(&tests, &roles, 4 * kit::HANG)
}
