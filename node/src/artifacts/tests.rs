use weir_host::disk::{Disk, SystemDisk};

use super::*;

#[tokio::test]
async fn what_was_checked_is_checked_again_only_where_it_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(Host::system(), folder.path().to_owned()).unwrap();
    let bytes = vec![7; 1 << 20];
    let digest = Digest(Sha256::digest(&bytes).into());
    let path = folder.path().join(digest.to_string());
    assert!(!artifacts.has(digest) && artifacts.read(digest).await.is_none());
    let put = |bytes: &[u8]| SystemDisk.write_atomically(&path, bytes).unwrap();
    put(&bytes);
    let read = artifacts.read(digest).await.expect("it is whole");
    assert!(read.bytes == bytes && !read.checking.is_zero());
    let read = artifacts.read(digest).await.expect("it is whole");
    assert!(read.bytes == bytes && read.checking.is_zero());
    // As long as it was, and another.
    put(&vec![8; bytes.len()]);
    assert!(artifacts.read(digest).await.is_none());
    assert!(artifacts.read(digest).await.is_none());
    put(&bytes);
    assert!(!artifacts.read(digest).await.expect("it is whole again").checking.is_zero());
    // Cut where it lies.
    SystemDisk.open(&path, false).unwrap().set_len(1).unwrap();
    assert!(artifacts.read(digest).await.is_none());
}
