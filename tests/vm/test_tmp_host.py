async def test_host():
    pass
