//! The exported calls: those of `stp_posix`'s list are symbols of the library, and nothing else is.
//!
//! - Each has the C library's signature and is handed on with the arguments as they came.

use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;

use libc::{addrinfo, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use stp_posix::inet::Next;

use crate::{behind, routes};

macro_rules! exports {
    ($($abi:literal fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// What is behind this library.
        pub(crate) fn next() -> Next {
            Next {$(
                // SAFETY: the C library's function of this name has this signature.
                $name: unsafe {
                    transmute::<*mut c_void, unsafe extern $abi fn($($type),*) -> $result>(
                        behind(
                            const {
                                match std::ffi::CStr::from_bytes_with_nul(
                                    concat!(stringify!($name), "\0").as_bytes(),
                                ) {
                                    Ok(name) => name,
                                    Err(_) => panic!(),
                                }
                            },
                        ),
                    )
                },
            )*}
        }

        $(
            /// The call of its name.
            ///
            /// # Safety
            /// As the C library's.
            // SAFETY: meant to stand before the C library's function of this name, with the same signature.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern $abi fn $name($($argument: $type),*) -> $result {
                let routes = routes();
                // SAFETY: the program's own arguments.
                unsafe {
                    match &routes.inet {
                        Some(inet) => inet.$name(&routes.next, $($argument),*),
                        None => (routes.next.$name)($($argument),*),
                    }
                }
            }
        )*
    };
}

stp_posix::translated_calls!(exports);
