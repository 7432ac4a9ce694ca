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
    // The hostile images of a long run take hours.
    let long = std::env::var("HEIRLOCK_LONG").as_deref() == Ok("1");
    kit::run(&tests, &roles, if long { 480 } else { 12 } * kit::HANG)
}
