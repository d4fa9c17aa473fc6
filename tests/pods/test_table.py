from pyratok_jax.pods.table import arrays


def test_equal_arrays_of_a_tuple_are_counted():
    three = "f32[3,16], f32[3,16], /*index=2*/f32[3,16], bf16[])"
    assert arrays(three) == "3 x f32[3,16], bf16[]"
    assert arrays("s32[4]{0:T(128)}") == "s32[4]"
    assert arrays("token") == "token"
